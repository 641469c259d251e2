"""The picture of the front: everything is inside, and single points and odd limits are drawn, too."""

from xml.etree import ElementTree

import pytest

from fxpress.passes.assign_bits.bit_picture import FrontPicture, Mix

FRONT = (Mix(784, 1.57, "6 x int2"), Mix(1424, 0.019, "3 x int4, 3 x int8"), Mix(3136, 1e-5, "6 x int8"))


def drawn(picture: FrontPicture) -> ElementTree.Element:
    return ElementTree.fromstring(picture.draw())


@pytest.mark.parametrize(
    "picture",
    [
        FrontPicture("weight bytes", FRONT, FRONT[1], FRONT[::2], limit=1568),
        FrontPicture("weight bytes", FRONT[:1], FRONT[0]),
        FrontPicture("cycles", (Mix(5e6, 0.0, "1 x int8"),), Mix(5e6, 0.0, "1 x int8"), limit=4e6),
        FrontPicture("flash", FRONT, Mix(2000, -0.1, "other"), limit=1e9, loss_limit=0.02),
        FrontPicture(
            "latency", (Mix(0.5, 1e-9, "a"), Mix(1.5, 0.0, "b")), Mix(0.5, 1e-9, "a"), loss_limit=1e9
        ),
    ],
)
def test_everything_lies_inside_the_picture(picture: FrontPicture) -> None:
    root = drawn(picture)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    circles = root.findall("./{*}g/{*}circle")
    places = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in circles if "transform" not in c.attrib]
    places += [(float(t.attrib["x"]), float(t.attrib["y"])) for t in root.findall("{*}text")]
    assert len(places) > len(picture.front)
    assert all(0 <= x <= width and -8 <= y <= height for x, y in places)


def test_more_of_the_resource_lies_further_right_and_less_loss_lower() -> None:
    root = drawn(FrontPicture("weight bytes", FRONT, FRONT[1]))
    line = root.find("{*}polyline")
    assert line is not None
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    assert points == sorted(points) and [y for _, y in points] == sorted(y for _, y in points)


@pytest.mark.parametrize(("limit", "count"), [(1568, 1), (100, 0), (1e9, 0)])
def test_a_budget_within_the_picture_is_a_broken_line(limit: float, count: int) -> None:
    root = drawn(FrontPicture("weight bytes", FRONT, FRONT[1], limit=limit))
    assert len([e for e in root.findall("{*}line") if "stroke-dasharray" in e.attrib]) == count
