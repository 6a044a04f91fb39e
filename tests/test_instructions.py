"""The table of instructions: every dataset of the paper and of the project's data is known, by name or category."""

import pytest

from tdro.instructions import categories, known_instruction, names

PAPER = """
agnews AllNLI altlex amazon_review_2018_1m cnn_dailymail codesearchnet dureader eli5_question_answer gooaq_pairs
hotpotqa medmcqa miracl mr_tydi_combined msmarco nq quora_duplicates_triplets searchQA_top5_snippets
sentence-compression SimpleWiki squad_pairs stackexchange_duplicate_questions_title-body_title-body t2ranking trivia
xsum yahoo_answers_title_answer
"""
OURS = """
zh_wiki_qa afqmc snli squad_sent code_docstring stackexchange_qa stackexchange_title_body quora package_xling
medquad consumer_health jaquad agnews package_desc altlex wikisplit scitldr
"""


@pytest.mark.parametrize("name", [*PAPER.split(), *OURS.split()])
def test_the_datasets_of_the_paper_and_of_this_project_are_known(name):
    assert known_instruction(name)


@pytest.mark.parametrize(
    ("name", "category"),
    [
        ("nq", "Wikipedia question answering"),
        ("NQ-train", "Wikipedia question answering"),
        ("BeIR/Natural-Questions", "Wikipedia question answering"),
        ("train_Hotpot_QA", "multi-hop question answering"),
        ("mr-tydi-ja", "multilingual question answering"),
        ("ms_marco_v2", "web search"),
        ("xsum", "summarisation"),
        ("forum_title_body", "title to body"),
    ],
)
def test_case_signs_and_surroundings_do_not_count(name, category):
    assert known_instruction(name) == categories()[category]


def test_the_longest_known_name_counts():
    table = names()
    assert known_instruction("zh_wiki_qa") == categories()["Chinese question answering"] != table["wikiqa"]
    assert known_instruction("jaquad") == table["jaquad"] != table["squad"]
    assert known_instruction("squad_sent") == table["squad sent"]
    assert known_instruction("stackexchange_title_body") == table["stackexchange title body"]


def test_short_names_must_be_words():
    assert known_instruction("bankquestions_unq") is None
    assert known_instruction("wowza") is None


def test_the_name_goes_before_the_category():
    assert known_instruction("xsum", "news") == categories()["summarisation"]
    assert known_instruction("our_tickets", "news") == categories()["news"]
    assert known_instruction("our_tickets", "no such kind") is None
    assert known_instruction("our_tickets") is None


@pytest.mark.parametrize(
    ("category", "known"),
    [
        ("Summarization", "summarisation"),
        ("medical QA (consumer question to doctor answer)", "medical question answering"),
        ("NLI", "natural language inference"),
        ("code search (docstring to function)", "code search"),
        ("Community-QA", "community question answering"),
    ],
)
def test_categories_have_other_names_too(category, known):
    assert known_instruction("x", category) == categories()[known]


def test_every_category_and_name_is_found_by_itself():
    for category, instruction in categories().items():
        assert known_instruction("", category) == instruction
    for name, instruction in names().items():
        assert known_instruction(name) == instruction
