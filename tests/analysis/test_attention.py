"""Attention JS divergence against a slow loop; special tokens, padding, resolution, mismatches."""

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from dynprobe.analysis import attention_js, moments, pairs_between, pairs_from_start
from dynprobe.analysis.attention_rows import LayerReader
from dynprobe.analysis.causality import informative, is_causal


def slow_js(run, step_a, step_b, *, layer, stack="model", kind="self", specials=False, causal=False):
    """(n_examples, n_heads), one scipy call per query; NaN where none is left."""
    probe, a, b = run.probe_set, run[step_a], run[step_b]
    key_stack = "encoder" if kind == "cross" else stack
    values = []
    for row, example in enumerate(a.attention_examples(stack)):
        p, q = (s.attentions(layer, stack, kind)[row].astype(float) for s in (a, b))
        n_virtual = p.shape[2] - probe.real[key_stack][example].sum()
        queries, keys = np.arange(p.shape[1]), np.arange(p.shape[2])
        if not specials:
            queries = queries[~probe.special[stack][example][probe.real[stack][example]]]
            plain = ~probe.special[key_stack][example][probe.real[key_stack][example]]
            keys = np.concatenate([np.arange(n_virtual), n_virtual + np.flatnonzero(plain)])
        if causal:
            queries = [query for query in queries if sum(key - n_virtual <= query for key in keys) > 1]
        p, q = p[:, queries][:, :, keys], q[:, queries][:, :, keys]
        values.append([[jensenshannon(x, y) ** 2 for x, y in zip(*pq, strict=True)] for pq in zip(p, q, strict=True)])
    return np.array([[np.mean(head) if head else np.nan for head in example] for example in values])


@pytest.mark.parametrize("specials", [False, True])
@pytest.mark.parametrize("left_padded", [False, True])
def test_equals_a_slow_loop(make_run, specials, left_padded):
    run = make_run(drift=0.2, left_padded=left_padded)
    result = attention_js(pairs_from_start(run), specials=specials)
    for layer in (1, 2):
        expected = slow_js(run, 6, 0, layer=layer, specials=specials)
        rows = result.select(layer=layer, step_a=6)
        per_layer, per_head = rows[rows["head"].isna()], rows[rows["head"].notna()]
        # scipy gives the root of the divergence: squaring it back costs a few roundings of float64.
        np.testing.assert_allclose(per_layer["value"], expected.mean(), rtol=1e-9)
        np.testing.assert_allclose(per_head.sort_values("head")["value"], expected.mean(axis=0), rtol=1e-9)
        assert (rows["n"] == 12).all()
        assert (rows["status"] == "measured").all()
        assert ((rows["low"] <= rows["value"]) & (rows["value"] <= rows["high"])).all()


def test_rows_say_what_was_compared(make_run):
    row = attention_js(pairs_from_start(make_run("a"))).frame.iloc[0]
    assert (row["comparison"], row["run_a"], row["step_a"], row["run_b"], row["step_b"]) == (
        "from_start",
        "a",
        2,
        "a",
        0,
    )


def test_encoder_decoder_has_all_three_kinds(make_run):
    run = make_run(stacks=("encoder", "decoder"), drift=0.2)
    frame = attention_js(pairs_from_start(run)).frame
    plain = frame[frame["head"].isna() & (frame["step_a"] == 6) & (frame["layer"] == 1)]
    assert plain[["stack", "position"]].fillna("").values.tolist() == [
        ["encoder", ""],
        ["decoder", ""],
        ["decoder", "cross"],
    ]
    expected = slow_js(run, 6, 0, layer=1, stack="decoder", kind="cross").mean()
    np.testing.assert_allclose(plain["value"].iloc[2], expected, rtol=1e-9)


def test_virtual_keys_are_kept(make_run):
    run = make_run(n_virtual=3, drift=0.2)
    result = attention_js(pairs_from_start(run))
    value = result.select(layer=1, step_a=6).iloc[0]["value"]
    np.testing.assert_allclose(value, slow_js(run, 6, 0, layer=1).mean(), rtol=1e-9)


def test_different_virtual_keys_cannot_be_compared(make_run):
    result = attention_js(pairs_between(make_run("a"), make_run("b", n_virtual=2)))
    assert result.frame["status"].tolist() == ["incompatible"]
    assert "different numbers of keys" in result.frame["reason"][0]


def test_equal_attention_is_below_resolution(make_run):
    frame = attention_js(pairs_from_start(make_run(drift=0.0))).frame
    assert (frame["value"] == 0).all()
    assert (frame["status"] == "below-resolution").all()


@pytest.mark.parametrize(("dtype", "status"), [(np.float16, "below-resolution"), (np.float32, "measured")])
def test_what_float16_cannot_hold_is_not_called_measured(make_run, dtype, status):
    # Probabilities move by about 1e-4 relative, below the 1e-3 spacing of float16.
    frame = attention_js(pairs_from_start(make_run(steps=(0, 1), drift=1e-4, dtype=dtype))).frame
    assert (frame["status"] == status).all()


def test_rounding_to_float16_alone_stays_below_the_floor(make_run):
    exact, stored = make_run("a", dtype=np.float32), make_run("b", dtype=np.float16)
    frame = attention_js(pairs_between(exact, stored)).select(step_a=0)
    assert (frame["value"] > 0).all()
    assert (frame["status"] == "below-resolution").all()


def test_fewer_examples_of_one_run_are_compared_on_those_both_have(make_run):
    result = attention_js(pairs_between(make_run("a", drift=0.1), make_run("b", n_attention=5, drift=0.3)))
    assert (result.frame["n"] == 5).all()


def test_examples_of_special_tokens_only_are_left_out(make_run):
    run = make_run(lengths=(2, 4), drift=0.2)
    kept = (run.probe_set.real["model"][:12].sum(axis=1) > 2).sum()
    assert 0 < kept < 12
    frame = attention_js(pairs_from_start(run)).frame
    assert (frame["n"] == kept).all()


def test_nothing_left_is_undefined(make_run):
    frame = attention_js(pairs_from_start(make_run(lengths=(2, 2)))).frame
    assert set(frame["status"]) == {"undefined"}
    assert frame["reason"].str.contains("no example has a token left").all()


def test_no_attention_is_not_captured(make_run):
    frame = attention_js(pairs_from_start(make_run(attention=False))).frame
    assert frame["status"].tolist() == ["not-captured"]
    assert "without attention" in frame["reason"][0]


def test_other_heads_are_incompatible(make_run):
    frame = attention_js(pairs_between(make_run("a"), make_run("b", n_heads=4))).frame
    assert frame["status"].tolist() == ["incompatible"]
    assert "3 self-attention heads and b 4" in frame["reason"][0]


def test_note_names_the_choice_of_special_tokens(make_run):
    pairs = pairs_from_start(make_run())
    assert "without special tokens" in attention_js(pairs).notes[0]
    assert "special tokens included" in attention_js(pairs, specials=True).notes[0]


# --- causal stacks: a query with one key to attend to is constant by construction


@pytest.mark.parametrize("specials", [False, True])
@pytest.mark.parametrize("left_padded", [False, True])
def test_causal_attention_is_averaged_without_its_first_query(make_run, specials, left_padded):
    run = make_run(causal=True, drift=0.2, lengths=(4, 9), left_padded=left_padded)
    rows = attention_js(pairs_from_start(run), specials=specials).select(layer=1, step_a=6)
    expected = slow_js(run, 6, 0, layer=1, specials=specials, causal=True)
    with_first = slow_js(run, 6, 0, layer=1, specials=specials)
    assert (with_first < expected).all(), "the first query adds a zero to each mean"
    np.testing.assert_allclose(rows["value"].iloc[0], expected.mean(), rtol=1e-9)
    np.testing.assert_allclose(rows["value"].iloc[1:], expected.mean(axis=0), rtol=1e-9)
    assert (rows["n"] == 12).all()


def test_values_and_rounding_floor_are_of_the_queries_that_count(make_run):
    run = make_run(causal=True, lengths=(4, 9))
    read = LayerReader("model", "self", 1, specials=False)
    n_kept = run.probe_set.real["model"][:12].sum(axis=1) - 2
    for causal, n_queries in ((True, n_kept - 1), (False, n_kept)):
        bundles = read(moments(run)[0], tuple(range(12)), causal=causal)
        assert sum(len(bundle.floor) for bundle in bundles) == 3 * n_queries.sum()
        assert sum(len(bundle.probabilities) for bundle in bundles) == 3 * n_queries.sum()
        assert all(((bundle.probabilities > 0).sum(axis=1) > 1).all() for bundle in bundles) is causal


def test_virtual_keys_give_the_first_query_a_choice(make_run):
    run = make_run(causal=True, n_virtual=3, drift=0.2)
    value = attention_js(pairs_from_start(run)).select(layer=1, step_a=6).iloc[0]["value"]
    np.testing.assert_allclose(value, slow_js(run, 6, 0, layer=1).mean(), rtol=1e-9)


@pytest.mark.parametrize("specials", [False, True])
def test_an_example_of_one_token_gives_no_value(make_run, specials):
    # Two special tokens around one or two others: with one, nothing is left of a causal stack.
    run = make_run(causal=True, drift=0.2, lengths=(3, 4) if not specials else (1, 3))
    frame = attention_js(pairs_from_start(run), specials=specials).select(layer=1, step_a=6)
    expected = slow_js(run, 6, 0, layer=1, specials=specials, causal=True)
    known = np.isfinite(expected).all(axis=1)
    assert 0 < known.sum() < 12
    assert (frame["n"] == known.sum()).all()
    np.testing.assert_allclose(frame["value"].iloc[0], expected[known].mean(), rtol=1e-9)


def test_nothing_left_of_a_causal_stack_is_undefined(make_run):
    said = {"model": {"stacks": [{"name": "model", "causal": True}]}}
    frame = attention_js(pairs_from_start(make_run(lengths=(3, 3), causal=True, manifest=said))).frame
    assert set(frame["status"]) == {"undefined"}
    assert frame["reason"].str.contains("no example has a token left").all()


def test_only_the_causal_stack_of_two_is_cut_and_cross_attention_never(make_run):
    run = make_run(stacks=("encoder", "decoder"), causal=True, drift=0.2, lengths=(4, 9))
    frame = attention_js(pairs_from_start(run)).frame
    rows = frame[frame["head"].isna() & (frame["step_a"] == 6) & (frame["layer"] == 2)]
    expected = [
        slow_js(run, 6, 0, layer=2, stack="encoder"),
        slow_js(run, 6, 0, layer=2, stack="decoder", causal=True),
        slow_js(run, 6, 0, layer=2, stack="decoder", kind="cross"),
    ]
    np.testing.assert_allclose(rows["value"].astype(float), [part.mean() for part in expected], rtol=1e-9)


def test_beside_an_attention_that_sees_everything_the_first_query_counts(make_run):
    backwards, both_ways = make_run("a", causal=True, lengths=(4, 9)), make_run("b", lengths=(4, 9))
    frame = attention_js(pairs_between(backwards, both_ways), specials=True).select(step_a=0, layer=1)
    assert "left out" not in " ".join(attention_js(pairs_between(backwards, both_ways)).notes)
    values = []
    for p, q in zip(backwards[0].attentions(1), both_ways[0].attentions(1), strict=True):
        rows = zip(p.astype(float).reshape(-1, p.shape[2]), q.astype(float).reshape(-1, p.shape[2]), strict=True)
        values.append(np.mean([jensenshannon(x, y) ** 2 for x, y in rows]))
    np.testing.assert_allclose(frame["value"].iloc[0], np.mean(values), rtol=1e-9)


def said(causal, name="model"):
    return {"model": {"name": "synthetic", "stacks": [{"name": name, "causal": causal}]}}


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({"causal": True}, True),
        ({"causal": True, "n_virtual": 3}, True),
        ({}, False),
        ({"n_virtual": 3}, False),
        ({"causal": True, "attention": False}, False),
        ({"lengths": (1, 1)}, False),
        ({"manifest": said(causal=True)}, True),
        ({"causal": True, "manifest": said(causal=False)}, False),
        ({"causal": True, "manifest": said(causal=False, name="decoder")}, True),
        ({"causal": True, "manifest": {"model": {"stacks": "many"}}}, True),
        ({"causal": True, "manifest": {"model": {"stacks": [7, {"name": "model", "causal": "no"}]}}}, True),
    ],
)
def test_a_run_says_whether_it_is_causal_or_its_attention_shows_it(make_run, recipe, expected):
    assert is_causal(moments(make_run(**recipe))[0], "model") is expected


def test_which_queries_have_a_choice():
    keys = np.array([0, 1, 3, 4])  # one virtual key, then tokens 0, 2 and 3
    np.testing.assert_array_equal(informative(np.array([0, 2, 3]), keys, n_virtual=1), [0, 2, 3])
    np.testing.assert_array_equal(informative(np.array([0, 2, 3]), keys[1:], n_virtual=1), [2, 3])
    assert informative(np.array([0]), np.array([0]), n_virtual=0).size == 0


def test_a_note_says_that_the_first_token_of_causal_attention_is_left_out(make_run):
    causal, other = (attention_js(pairs_from_start(make_run(str(c), causal=c))) for c in (True, False))
    assert any("with only itself to attend to" in note for note in causal.notes)
    assert not any("itself" in note for note in other.notes)


# --- resolution


def test_rows_carry_the_coarser_spacing_of_both_snapshots(make_run):
    wide, narrow = make_run("a", dtype=np.float32), make_run("b")
    for pairs, dtype in ((pairs_between(wide, narrow), np.float16), (pairs_from_start(wide), np.float32)):
        assert (attention_js(pairs).frame["resolution"] == np.finfo(dtype).eps).all()
