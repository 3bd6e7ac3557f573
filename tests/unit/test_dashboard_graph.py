"""Which nodes of a chain are drawn, what they say, and where they stand."""

import re
import sys
import time
from itertools import pairwise

import attrs
import pytest

from eventdriven_sync.dashboard.exports import mermaid
from eventdriven_sync.dashboard.graph import VISIBLE, Node, View, chain_graph, counted, worst
from eventdriven_sync.dashboard.layout import COLUMN, HEIGHT, NOTE_UNITS, Scene, cut, lay_out
from tests.unit.chains import (
    OPERATION,
    chain_of,
    event,
    failure,
    fan_out,
    handled,
    later,
    rename,
)


def nodes(root: Node) -> dict[str, Node]:
    return {node.label: node for node in root.walk()}


def lines(root: Node) -> list[str]:
    """One line for each node, indented by depth: kind, label, edge, note."""
    found, waiting = [], [(root, 0)]
    while waiting:
        node, depth = waiting.pop()
        found.append("  " * depth + " | ".join(filter(None, (node.label, node.edge, node.note))))
        waiting += [(child, depth + 1) for child in reversed(node.children)]
    return found


def test_each_node_says_its_state_and_each_line_its_time() -> None:
    assert lines(chain_graph(rename())) == [
        "rename | http · succeeded · 34 ms",
        "  User.renamed | +10 ms",
        "    Blog.rename | waited 5 ms | succeeded",
        "      Blog.userUpdated | ran 12 ms",
        "        User.saw | waited 5 ms | succeeded · 12 ms",
        "    Comment.rename | waited 105 ms | dead · 3 attempts · 12 ms",
    ]


def test_a_dead_node_has_its_error_and_a_retrying_one_its_time() -> None:
    due = later(60_000)
    chain = chain_of(event(1, handled(1, state="retrying", failures=(failure("no\nway"),), due_at=due)))
    node = nodes(chain_graph(chain))["Blog.rename"]
    assert (node.state, node.mark, node.due_at) == ("retrying", "↻", due)
    assert node.error == "ValueError: no"
    assert node.description == "delivery Blog.rename: retrying · 12 ms, ValueError: no"
    dead = nodes(chain_graph(rename()))["Comment.rename"]
    assert (dead.state, dead.due_at) == ("dead", None)


def test_an_event_nobody_handles_and_one_that_has_a_key_say_so() -> None:
    chain = chain_of(event(1, key="42", version=2), truncated=True)
    assert lines(chain_graph(chain))[1:] == [
        "  User.renamed | +10 ms | v2 · key 42 · no handler",
        "  the chain has more events than are shown",
    ]


def test_a_failed_operation_is_drawn_as_one() -> None:
    operation = attrs.evolve(OPERATION, status="failed", error=failure("no"))
    root = chain_graph(chain_of(operation=operation))
    assert (root.state, root.error) == ("dead", "ValueError: no")


def test_many_siblings_are_one_node_and_their_handlers_and_events_are_summed_up() -> None:
    assert lines(chain_graph(fan_out(1000))) == [
        "rename | http · succeeded · 34 ms",
        "  User.renamed | 1,000 events",
        "    Blog.rename | waited ø 5 ms | 1,000 succeeded",
        "      Blog.done | ran 12 ms | 1,000 events",
    ]


def test_nineteen_siblings_are_drawn_singly() -> None:
    assert [node.kind for node in chain_graph(fan_out(19)).walk()].count("event") == 2 * 19


def test_of_folded_siblings_the_first_in_trouble_are_shown_beside_them() -> None:
    root = chain_graph(fan_out(100, dead=5))
    single = [child.id for child in root.children if child.kind == "event"]
    assert single == [f"{n:024x}" for n in (96, 97, 98)]
    folded = next(child for child in root.children if child.kind == "events")
    assert (folded.count, folded.states) == (97, {"succeeded": 95, "dead": 2})
    assert (folded.state, folded.opens) == ("dead", "open")
    assert folded.children[0].note == "2 dead, 95 succeeded"


def test_an_opened_fold_shows_its_events_those_in_trouble_first() -> None:
    many_id = f"{OPERATION.id}/User.renamed"
    root = chain_graph(fan_out(150, dead=1), View(opened=frozenset({many_id})))
    (folded,) = root.children
    assert (folded.id, folded.opens, folded.count) == (many_id, "close", 150)
    assert folded.children[0].children[0].state == "dead"
    assert folded.children[-1].label == "… and 50 more"


def test_a_closed_branch_says_what_lies_behind_it() -> None:
    chain = rename()
    closed = chain.events[0].deliveries[0].delivery.id
    node = nodes(chain_graph(chain, View(closed=frozenset({closed}))))["Blog.rename"]
    assert (node.hidden, node.opens, node.children) == (2, "open", [])
    assert node.states == {"succeeded": 1}
    assert node.description.endswith(", 2 nodes behind it")


def wide(branches: int = 60, leaves: int = 15) -> list[object]:
    """Handlers that each publish events of one name; in one branch somebody failed."""
    found = []
    for branch in range(branches):
        below = [
            event(10_000 + branch * 100 + n, handled(10_000 + branch * 100 + n), name="Leaf.made")
            for n in range(leaves)
        ]
        if branch == 40:
            below[3] = event(99, handled(99, state="dead", failures=(failure(),)), name="Leaf.made")
        found.append(event(branch, handled(branch, *below), name=f"Branch.no{branch}"))
    return found


def test_in_a_large_chain_branches_of_handlers_are_closed_but_never_the_one_in_trouble() -> None:
    chain = chain_of(*wide())
    root = chain_graph(chain)
    drawn = list(root.walk())
    assert len(drawn) <= VISIBLE < sum(1 + len(item.deliveries) for item in chain.walk())
    assert "dead" in {node.state for node in drawn}
    assert sum(node.hidden for node in drawn) + len(drawn) == 1 + 60 * (2 + 2 * 15)


def test_what_a_person_opens_stays_open_in_a_large_chain() -> None:
    chain = chain_of(*wide())
    last = chain.events[-1].deliveries[0].delivery.id
    by_id = {node.id: node for node in chain_graph(chain).walk()}
    assert by_id[last].hidden == 30
    opened = {node.id: node for node in chain_graph(chain, View(opened=frozenset({last}))).walk()}
    assert (opened[last].hidden, opened[last].opens) == (0, "close")


def test_a_chain_deeper_than_the_stack_is_drawn() -> None:
    depth = sys.getrecursionlimit() + 10
    deepest = event(0)
    for number in range(1, depth):
        deepest = event(number, handled(number, deepest))
    root = chain_graph(chain_of(deepest), View(visible=10 * depth))
    assert len(lay_out(root).boxes) == 2 * depth
    assert mermaid(root).count("-->") == 2 * depth - 1


def test_a_thousand_nodes_are_laid_out_in_a_moment() -> None:
    chain = chain_of(*wide(branches=33))
    begun = time.perf_counter()
    scene = lay_out(chain_graph(chain, View(visible=5000)))
    assert len(scene.boxes) > 1000
    assert time.perf_counter() - begun < 1.0


def test_no_two_boxes_touch_and_children_stand_right_of_their_parent() -> None:
    scene: Scene = lay_out(chain_graph(chain_of(*wide(branches=30))))
    places = {box.node.id: box for box in scene.boxes}
    by_column: dict[float, list[float]] = {}
    for box in scene.boxes:
        by_column.setdefault(box.x, []).append(box.y)
        assert 0 <= box.x < scene.width
        assert 0 <= box.y < scene.height
        if box.parent_id:
            assert box.x == places[box.parent_id].x + COLUMN
    for tops in by_column.values():
        tops.sort()
        assert all(below - above > HEIGHT for above, below in pairwise(tops))
    assert len(scene.lines) == len(scene.boxes) - 1


@pytest.mark.parametrize(
    "text", ["User.nameUpdated", "M" * 200, "界" * 200, "a" * 5000, "Blog." + "update_author_" * 20 + "end"]
)
def test_a_text_is_cut_in_its_middle_to_fit_its_box(text: str) -> None:
    shown = cut(text, 30)
    assert len(shown) <= 56
    assert shown == text or (shown[0] == text[0] and shown[-1] == text[-1] and "…" in shown)


def test_long_names_are_cut_in_the_box_and_whole_in_the_node() -> None:
    name = "User." + "veryLong" * 30
    scene = lay_out(chain_graph(chain_of(event(1, name=name, key="k" * 300))))
    box = scene.boxes[1]
    assert box.node.label == name
    assert len(box.title) < 40
    assert len(box.note) <= NOTE_UNITS * 2


def test_states_are_counted_worst_first() -> None:
    states = {"succeeded": 1200, "dead": 2, "running": 0}
    assert (worst(states), counted(states)) == ("dead", "2 dead, 1,200 succeeded")
    assert worst({}) == ""


def test_mermaid_draws_the_same_nodes_with_their_states_and_times() -> None:
    text = mermaid(chain_graph(rename()))
    assert text.splitlines()[:3] == [
        "flowchart LR",
        '  n0[["rename<br>http · succeeded · 34 ms"]]:::succeeded',
        '  n1(["User.renamed"])',
    ]
    assert '  n1 -->|"waited 105 ms"| n5' in text
    assert ":::dead" in text


HOSTILE = ['"]; click n0 "javascript:alert(1)"', "<img src=x onerror=alert(1)>", "a|b{c}`d`", "end\nn9[x]"]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_events_say_cannot_steer_mermaid(text: str) -> None:
    exported = mermaid(chain_graph(chain_of(event(1, key=text))))
    (line,) = [line for line in exported.splitlines() if line.startswith("  n1([")]
    shown = line.removeprefix('  n1(["User.renamed<br>').removesuffix('"])')
    assert re.fullmatch(r"(?:[\w .,:()/+@×…·-]|#\d+;)+", shown)
    assert len(exported.splitlines()) == len(mermaid(chain_graph(chain_of(event(1)))).splitlines())
