"The paper's numbers, and which run belongs in which row."
from gcutmix.study.paper import PAPER, ROWS, TABLES, USUAL, cell_of, filled, rows_of
from gcutmix.training import make_preset, recipe
from gcutmix.variants import VARIANTS


def test_the_printed_tables_have_the_papers_rows():
    assert [len(PAPER[n]["cuhk03-detected"]) for n in "234"] == [13, 5, 3]
    assert PAPER["2"]["market1501"]["Ours"] == (94.5, 85.2)
    assert PAPER["2"]["cuhk03-labeled"]["AOS"] == (None, None)
    best = {d: max(rows, key=lambda r: rows[r][0] or 0) for d, rows in PAPER["3"].items()}
    # the paper loses to its rival on Duke
    assert best == {"cuhk03-detected": "+ PC2", "dukemtmc-reid": "+ BDB2 (BDB*3)"}


def test_what_a_record_says_of_itself_is_what_tables_say():
    assert ROWS == {"G": "G", "BDB": "+ BDB1 (BDB*)", "BDB3": "+ BDB2 (BDB*3)", "PC1": "+ PC1",
                    "PC2": "+ PC2"}
    assert TABLES["2"].items() >= {"BDB*": "BDB", "BDB*3": "BDB3", "Ours": "PC2"}.items()
    assert set(TABLES["3"]) == set(PAPER["3"]["cuhk03-detected"])
    assert set(TABLES["2"]) >= set(PAPER["2"]["cuhk03-detected"])
    for number in "23": assert set(rows_of(number)) <= set(VARIANTS)


def test_a_setting_that_came_later_changes_no_cell():
    config = make_preset("demo", "pedestrians", partner="any")
    made = recipe(config)
    for key in set(USUAL) - {"variant"}:
        if made[key] != USUAL[key]: continue
        older = {k: v for k, v in made.items() if k != key}
        assert filled(older) == made and cell_of(older) == cell_of(made) == "PC2-any"


def test_partner_and_k_name_a_cell_where_they_play_a_part():
    changed = recipe(make_preset("demo", "pedestrians", partner="any", k=4))
    cells = {name: cell_of(changed | {"variant": name}) for name in VARIANTS}
    more = {name: cell.removeprefix(name) for name, cell in cells.items() if cell != name}
    assert more == {"PC1": "-any-k4", "PC2": "-any-k4", "PC2-random": "-any-k4",
                    "G+AttentiveCutMix": "-k4"}
