"""Attention JS divergence against a slow loop; special tokens, padding, resolution, mismatches."""

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from dynprobe.analysis import attention_js, pairs_between, pairs_from_start


def slow_js(run, step_a, step_b, *, layer, stack="model", kind="self", specials=False):
    """(n_examples, n_heads), one scipy call per query."""
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
        p, q = p[:, queries][:, :, keys], q[:, queries][:, :, keys]
        values.append([[jensenshannon(x, y) ** 2 for x, y in zip(*pq, strict=True)] for pq in zip(p, q, strict=True)])
    return np.array([[np.mean(head) for head in example] for example in values])


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
