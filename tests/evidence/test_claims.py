"""Claims as files: what they may say, their cells, and the order in which these are computed."""

import pytest

from balcap_jax.errors import UserError
from balcap_jax.evidence.cells import make_cell
from balcap_jax.evidence.claims import chosen_claims, read_claim, read_claims, shipped_claims
from balcap_jax.evidence.code_version import meaning_of
from balcap_jax.evidence.plan import plan_of

CLAIM = """
number = {number}
name = "{name}"
title = "One beside another"
says = "They differ."
refuted_by = "They do not."
required = {required}

[base]
steps = 3

[cells.gdpo]

[cells.grpo]
rl.advantage = "grpo"
seeds = 1

[[comparisons]]
title = "as they are"
one = "gdpo"
other = "grpo"
expected = {{b_capscore = "higher"}}
"""


def written(tmp_path, text=CLAIM, **fields):
    fields = {"number": 1, "name": "first", "required": "true"} | fields
    path = tmp_path / f"{fields['name']}.toml"
    path.write_text(text.format(**fields))
    return path


def test_the_shipped_claims_are_sound():
    claims = read_claims(shipped_claims())
    required = [claim.number for claim in claims if claim.required]
    assert required == [1, 2, 3, 7, 8]
    plan = plan_of([c for c in claims if c.required], seeds=5, code="x")
    # Three hours of two cores at a minute for 100 steps.
    assert sum(p.cell.config.steps for p in plan if p.cell.kind == "train") <= 180 * 100
    squeezed = claims[0].cell("gdpo_linguistic_5", 3).config
    assert squeezed.study.squeeze == ("linguistic=0.2",)
    assert (squeezed.seed, squeezed.steps, squeezed.data.heldout) == (3, 100, 200)


def test_a_cell_that_claims_share_is_computed_once(tmp_path):
    first = read_claim(written(tmp_path))
    second = read_claim(written(tmp_path, number=2, name="second"))
    plan = plan_of([first, second], seeds=2, code="x")
    assert [p.names for p in plan] == [
        ("first/gdpo", "second/gdpo"), ("first/grpo", "second/grpo"),
        ("first/gdpo", "second/gdpo"),
    ]  # fmt: skip
    assert [p.cell.seed for p in plan] == [0, 0, 1]  # grpo has one seed


def test_required_claims_come_first(tmp_path):
    later = read_claim(written(tmp_path, required="false").rename(tmp_path / "a.toml"))
    other = CLAIM.replace("steps = 3", "steps = 4")
    first = read_claim(written(tmp_path, other, number=2, name="second"))
    plan = plan_of([later, first], seeds=1, code="x")
    assert [name.partition("/")[0] for p in plan for name in p.names] == [
        "second", "second", "first", "first",
    ]  # fmt: skip


def test_the_key_of_a_cell_is_what_it_computes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def key(values, seed=0, kind="train", code="x"):
        return make_cell(kind, values, seed=seed).key(code)

    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    plain = key({})
    assert key({"steps": 100}) == plain  # the default, told
    for name in ("scenes", "base"):  # what lies beside has nothing to do with those of the package
        (tmp_path / name).write_text("something else")
    assert key({}) == plain
    others = [
        key({}, seed=1),
        key({}, code="y"),
        key({}, kind="trl"),
        key({"rl.advantage": "grpo"}),
        key({"evaluation": {"batch_size": 100}}),
        key({"data.path": str(rows)}),
    ]
    assert len({plain, *others}) == 7
    rows.write_text("{ }\n")
    assert key({"data.path": str(rows)}) not in others  # another file of that name


def test_cells_share_scores_of_a_starting_policy():
    plain = make_cell("train", {}, seed=0).start_key("x")
    assert make_cell("train", {"rl.advantage": "grpo"}, seed=0).start_key("x") == plain
    assert make_cell("train", {}, seed=1).start_key("x") != plain
    assert make_cell("train", {"data.heldout": 9}, seed=0).start_key("x") != plain


def test_cells_of_other_rewards_share_them_where_the_same_are_watched():
    watched = {"reward.rivals": ["qa_utility"], "reward.weights": [1, 1, 1, 0]}
    start = make_cell("train", watched, seed=0).start_key("x")
    assert start != make_cell("train", {}, seed=0).start_key("x")
    trained = {**watched, "reward.weights": [0, 0, 0, 1], "reward.length_control": "none"}
    assert make_cell("train", trained, seed=0).start_key("x") == start
    for change in ({"reward.qa.draws": 4}, {"reward.rivals": ["qa_utility_length"]}):
        assert make_cell("train", watched | change, seed=0).start_key("x") != start


def test_code_is_known_by_what_it_computes():
    source = '"""Words."""\ndef f(x):\n    """More."""\n    return x + 1  # why\n'
    assert meaning_of(source) == meaning_of("def f(x):\n\n    return (x + 1)\n")
    assert meaning_of(source) != meaning_of(source.replace("1", "2"))


def test_claims_are_chosen_by_number_or_name(tmp_path):
    claims = [
        read_claim(written(tmp_path)),
        read_claim(written(tmp_path, number=2, name="second")),
    ]
    assert chosen_claims(claims, []) == claims
    assert chosen_claims(claims, ["second"]) == chosen_claims(claims, ["2"]) == claims[1:]
    with pytest.raises(UserError, match=r"no claim 'secnd'.*did you mean second\?"):
        chosen_claims(claims, ["secnd"])
    with pytest.raises(UserError, match=r"known are 1 \(first\), 2 \(second\)"):
        chosen_claims(claims, ["9"])


def test_a_setting_that_waits_comes_after_seeds_of_the_others(tmp_path):
    waits = CLAIM.replace("seeds = 1", "seeds = 2\nwaits = 2")
    plan = plan_of([read_claim(written(tmp_path, waits))], seeds=3, code="x")
    assert [(*p.names, p.cell.seed) for p in plan] == [
        ("first/gdpo", 0), ("first/gdpo", 1), ("first/gdpo", 2), ("first/grpo", 0),
        ("first/grpo", 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("rl.advantage", "rl.advantag", "cell grpo: there is no setting rl.advantag"),
        ('"grpo"\nseeds', '"gropo"\nseeds', "cell grpo: rl.advantage='gropo'"),
        ("seeds = 1", "seeds = 0", "seeds=0, which must be at least 1"),
        ("seeds = 1", "waits = -1", "waits=-1, which must be 0 or more"),
        ("seeds = 1", "seed = 1", "gives seed, which the runner gives"),
        (
            "seeds = 1",
            'kind = "trian"',
            "the kind 'trian', known are train, trl; did you mean train",
        ),
        ('other = "grpo"', 'other = "grpos"', "'grpos', which the file does not have; did you"),
        ('other = "grpo"', "", "a comparison lacks other"),
        ("b_capscore", "bcapscore", "'bcapscore', known are .*did you mean b_capscore"),
        ('"higher"', '"up"', "expects b_capscore to be 'up'"),
        ('title = "One', 'titel = "One', "unknown field titel; did you mean title"),
        ("required = true", "", "must have required, of type bool"),
        ("[base]", "[base", "is not TOML"),
        ("required = true", "required = true\ncaptions = 9", "captions=9, which must be a number"),
        (
            "[[comparisons]]",
            '[[scatters]]\ntitle = "t"\nx = "recall"\ny = "wods"\nsize = "rho"\n\n[[comparisons]]',
            "a scatter names the measure 'wods', known are .*did you mean words",
        ),
        ("[[comparisons]]", '[[scatters]]\ntitle = "t"\n\n[[comparisons]]', "a scatter lacks x, y"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, old, new, said):
    text = CLAIM.format(number=1, name="first", required="true")
    assert old in text
    path = tmp_path / "claim.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=said) as error:
        read_claim(path)
    assert str(path) in str(error.value)


def test_two_claims_of_one_number_are_refused(tmp_path):
    paths = [written(tmp_path), written(tmp_path, name="second")]
    with pytest.raises(UserError, match="both have the number 1"):
        read_claims(paths)
