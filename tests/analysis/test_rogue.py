"""Dimensions that carry more than their share are named, and only these."""

from dynprobe.analysis import hidden_state_similarity, pairs_from_start


def rogue_notes(run, **options):
    notes = hidden_state_similarity(pairs_from_start(run), **options).notes
    return [note for note in notes if "more than their share" in note]


def test_planted_dimensions_are_named_with_their_layers(make_run):
    run = make_run("a", d_model=48, n_examples=60, lengths=(20, 30), rogue=(7, 31), drift=0.05)
    notes = rogue_notes(run)
    assert len(notes) == 1  # the end has the same
    assert notes[0].startswith("a at step 0: more than their share")
    assert "31 (layers 1 to 2, up to " in notes[0]
    assert "7 (layers 1 to 2, up to " in notes[0]
    assert notes[0].count("(layers") == 2


def test_even_dimensions_are_not(make_run):
    assert rogue_notes(make_run(d_model=48, n_examples=60, lengths=(20, 30))) == []


def test_standardized_states_need_no_warning(make_run):
    run = make_run(d_model=48, n_examples=60, lengths=(20, 30), rogue=(7,))
    assert rogue_notes(run, standardize=True) == []
    assert any(
        "divided by its standard deviation" in n
        for n in hidden_state_similarity(pairs_from_start(run), standardize=True).notes
    )


def test_many_are_counted_not_listed(make_run):
    run = make_run(d_model=256, n_examples=60, lengths=(20, 30), rogue=tuple(range(0, 70, 10)))
    assert " and 2 others. " in rogue_notes(run)[0]
