def disk_cases(a,b): return {}
