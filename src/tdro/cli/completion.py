"""`tdro completion bash|zsh|fish`: the script that lets a shell complete tdro's verbs, files and options."""

from tdro.errors import ConfigError

HELP = """\
usage: tdro completion bash|zsh|fish

Print a script with which your shell completes verbs, study files, run folders, every option of a study, the names of
its datasets and the values of options.

examples:
  echo 'source <(tdro completion bash)' >> ~/.bashrc
  tdro completion fish > ~/.config/fish/completions/tdro.fish

  bash   source it, now and in ~/.bashrc
  zsh    write it to a folder of $fpath as _tdro, or: source <(tdro completion zsh), behind compinit
  fish   write it to ~/.config/fish/completions/tdro.fish
"""
BASH = """\
# bash completion of tdro; source it
_tdro() {
    local answers
    answers=$(tdro completion --words "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
    COMPREPLY=()
    [ -n "$answers" ] && mapfile -t COMPREPLY <<< "$answers"
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == */ ]]; then
        compopt -o nospace
    fi
}
complete -o default -F _tdro tdro
"""
ZSH = """\
#compdef tdro
# zsh completion of tdro
_tdro() {
    local -a answers
    answers=("${(@f)$(tdro completion --words "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n "${answers[*]}" ]]; then
        compadd -S '' -- ${(M)answers:#*/}
        compadd -- ${answers:#*/}
    else
        _files
    fi
}
if [[ "${funcstack[1]}" == _tdro ]]; then _tdro "$@"; else compdef _tdro tdro; fi
"""
FISH = """\
# fish completion of tdro
function __tdro_answers
    set -l before (commandline -opc)
    set -l current (commandline -ct)
    tdro completion --words $before[2..-1] "$current" 2>/dev/null
end
complete -c tdro -f -a '(__tdro_answers)'
complete -c tdro -F -n 'test (count (__tdro_answers)) -eq 0'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def command(arguments: list[str]) -> int:
    """Print a script, or answer one that asks."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if arguments[0] == "--words":
        from tdro.cli.main import OTHER_VERBS, STUDY_VERBS
        from tdro.setup.completion import complete

        for candidate in complete(arguments[1:] or [""], ["demo", *STUDY_VERBS, *OTHER_VERBS]):
            print(candidate)
        return 0
    if arguments[0] not in SCRIPTS:
        raise ConfigError(
            "there is no completion for this shell", saw=arguments[0], do=f"use one of: {', '.join(SCRIPTS)}"
        )
    print(SCRIPTS[arguments[0]], end="")
    return 0
