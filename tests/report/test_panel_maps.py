"""The map of a matrix beside other panels."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imread

from dynprobe.report.panel_maps import matrix
from dynprobe.report.panels import save_panels


def test_a_map_has_the_given_scale_and_is_the_same_each_time(tmp_path: Path) -> None:
    panel = matrix(np.eye(4), title="groups", label="absolute correlation", limits=(0.0, 2.0))
    axes = Figure().add_subplot()
    panel(axes)
    (image,) = axes.get_images()
    assert image.get_clim() == (0.0, 2.0)
    assert axes.get_title(loc="left") == "groups"
    assert axes.get_figure().axes[1].get_ylabel() == "absolute correlation"
    one, other = (save_panels(tmp_path / name, [panel, panel]) for name in ("a.png", "b.png"))
    assert one.read_bytes() == other.read_bytes()
    assert imread(one).std() > 0
