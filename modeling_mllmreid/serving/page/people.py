"""The tab People: groups of unknown people, suggested merges, and decisions that a human makes and takes back."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import gradio as gr
import numpy as np

from ...gallery.decisions import Decision
from ...gallery.filters import Where
from ...gallery.report import decision_line, merge_line
from ...gallery.results import Hit, counted
from ...gallery.unknown_people import largest_groups
from ...utils.errors import UserError
from ..service import GalleryService
from .forms import kept, listed, shown, toggled, user
from .pictures import MOST_SHOWN, grid, row_pictures
from .texts import NEW_NAME

SHOWN_GROUPS, SHOWN_MERGES, SHOWN_DECISIONS = 30, 20, 50
# The rows of each group by its number.
Groups = Mapping[int, Sequence[str]]
# Suggested merges: a line, and the rows of both groups.
Merges = Sequence[tuple[str, Sequence[str], Sequence[str]]]


def people_tab(service: GalleryService, tab: gr.Tab) -> None:
    """Lays out the tab."""
    button = gr.Button("Group the crops", variant="primary", elem_id="group")
    answer = gr.Textbox(label="Result", interactive=False, elem_id="groups", elem_classes="answer")
    with gr.Tabs(overflow_behavior="wrap"):
        with gr.Tab("Groups"):
            group = gr.Dropdown(label="Group", choices=[], filterable=False, elem_id="choice")
            crops = grid("Crops; click those of another person", "crops", marks=True)
            with gr.Row():
                person = gr.Textbox(label="Name of the person", placeholder=NEW_NAME, min_width=220, elem_id="person")
                new = gr.Textbox(label="New name, for Rename and Split", min_width=220, elem_id="new")
            with gr.Row():
                confirm = gr.Button("One person", elem_id="confirm")
                rename = gr.Button("Rename", elem_id="rename")
                split = gr.Button("Split the chosen crops", elem_id="split")
        with gr.Tab("Suggested merges"):
            pair = gr.Dropdown(label="Perhaps one person", choices=[], filterable=False, elem_id="merge")
            with gr.Row():
                with gr.Column(min_width=260):
                    first = grid("One group", "merge-first")
                with gr.Column(min_width=260):
                    second = grid("The other group", "merge-second")
            joined = gr.Textbox(label="Name of the person", placeholder=NEW_NAME, elem_id="merge-person")
            join = gr.Button("One person", elem_id="join")
        with gr.Tab("Decisions"):
            made = gr.Radio(label="Newest first", choices=[], elem_id="decisions")
            undo = gr.Button("Undo this decision", elem_id="undo")
    groups, merges, hits, chosen = kept({}), kept([]), kept([]), kept([])
    # The group and the merge whose crops are on the screen: a decision is about these.
    number, line = kept(None), kept(None)
    # Counts what was done, so that the groups are drawn again.
    done = gr.State(0)

    @shown(answer)
    def find(done: int) -> Any:
        rows, found = service.groups()
        largest = largest_groups(rows, found)
        pairs = []
        for place, merge in enumerate(found.merges[:SHOWN_MERGES], start=1):
            both = [rows.ids[np.flatnonzero(found.labels == label)].tolist() for label in (merge.first, merge.second)]
            pairs.append((f"{place}. {merge_line(merge)}", *both))
        several, merges = counted(len(largest), "group"), counted(len(found.merges), "suggested merge")
        text = f"{counted(len(rows), 'row')}, {several} of two or more, {merges}"
        return text, done + 1, dict(islice(largest.items(), SHOWN_GROUPS)), pairs

    @shown(answer)
    def choose(hits: list[Hit], chosen: list[str], event: gr.SelectData) -> Any:
        chosen = toggled(chosen, listed(hits, event.index).id)
        return row_pictures(service, hits, chosen=chosen), chosen, gr.skip()

    @shown(answer)
    def decide_one(done: int, groups: Groups, number: int | None, name: str, request: gr.Request) -> Any:
        ids = groups.get(-1 if number is None else number)
        if ids is None:
            raise UserError("one person: no group is chosen: group the crops, and choose one")
        return *_report(service, service.decide("confirm", ids, name, who=user(request))), done + 1

    @shown(answer)
    def give_name(done: int, name: str, new: str, request: gr.Request) -> Any:
        made = service.decide("rename", person=name.strip(), new=new, who=user(request))
        return *_report(service, made), done + 1

    @shown(answer)
    def take_apart(done: int, chosen: list[str], new: str, request: gr.Request) -> Any:
        if not chosen:
            raise UserError("split: no crop is chosen: click the crops of the other person")
        return *_report(service, service.decide("split", chosen, new, who=user(request))), done + 1

    @shown(answer)
    def join_both(done: int, merges: Merges, line: str | None, name: str, request: gr.Request) -> Any:
        ids = [id for own, one, other in merges if own == line for id in (*one, *other)]
        if not ids:
            raise UserError("one person: no suggested merge is chosen: group the crops, and choose one")
        made = service.decide("confirm", ids, name, who=user(request))
        return *_report(service, made), done + 1, [merge for merge in merges if merge[0] != line], ""

    @shown(answer)
    def take_back(done: int, decision: str | None, request: gr.Request) -> Any:
        undone = service.decide("undo", [decision] if decision else [], who=user(request))
        return *_report(service, undone, "undone: "), done + 1

    @shown()
    def show_group(groups: Groups, number: int | None) -> Any:
        return _group_view(service, groups, number)

    @shown()
    def show_merge(merges: Merges, line: str | None) -> Any:
        return _merge_view(service, merges, line)

    @shown()
    def show_all(groups: Groups, number: int | None, merges: Merges, line: str | None) -> Any:
        return *_group_view(service, groups, number), *_merge_view(service, merges, line)

    @shown()
    def list_decisions() -> Any:
        return _decisions(service)

    group_view, merge_view = [group, number, crops, hits, chosen, person, new], [pair, line, first, second]
    tab.select(list_decisions, None, made, queue=False)
    button.click(find, done, [answer, done, groups, merges])
    group.input(show_group, [groups, group], group_view, queue=False)
    pair.input(show_merge, [merges, pair], merge_view, queue=False)
    crops.select(choose, [hits, chosen], [crops, chosen, answer], trigger_mode="multiple")
    reported = [answer, made, done]
    confirm.click(decide_one, [done, groups, number, person], reported)
    rename.click(give_name, [done, person, new], reported)
    split.click(take_apart, [done, chosen, new], reported)
    join.click(join_both, [done, merges, line, joined], [*reported, merges, joined])
    undo.click(take_back, [done, made], reported)
    done.change(show_all, [groups, number, merges, line], [*group_view, *merge_view], queue=False)


def _report(service: GalleryService, made: Decision, before: str = "") -> tuple[str, gr.Radio]:
    """Returns a decision as a line, and the decisions that can be undone now."""
    return before + decision_line(made), _decisions(service)


def _group_view(service: GalleryService, groups: Groups, number: int | None) -> tuple[Any, ...]:
    """Returns the groups as a choice, the crops of one of them with nothing chosen, and its name."""
    choices, rows = [], service.gallery.rows()
    for own, ids in groups.items():
        members = rows.part(rows.places(ids))
        names = sorted({name for name in members.columns["person"] if name})
        choices.append((", ".join([f"group {own}: {len(members)} crops", *names]), own))
    if number not in groups:
        number = next(iter(groups), None)
    hits = [] if number is None else service.find(Where(ids=list(groups[number])[:MOST_SHOWN]))
    people = {hit.crop.person for hit in hits}
    name = (people.pop() if len(people) == 1 else None) or ""
    choice = gr.Dropdown(choices=choices, value=number)
    return choice, number, row_pictures(service, hits), hits, [], name, ""


def _merge_view(service: GalleryService, merges: Merges, line: str | None) -> tuple[Any, ...]:
    """Returns the suggested merges as a choice, and the crops of both groups of one of them."""
    lines = [own for own, _, _ in merges]
    if line not in lines:
        line = next(iter(lines), None)
    members = next(((one, other) for own, one, other in merges if own == line), ((), ()))
    pictures = [row_pictures(service, service.find(Where(ids=list(ids)[:MOST_SHOWN]))) for ids in members]
    return gr.Dropdown(choices=lines, value=line), line, *pictures


def _decisions(service: GalleryService) -> gr.Radio:
    """Returns the decisions that can be undone as a choice, the newest first and chosen."""
    newest = service.decisions()[: -SHOWN_DECISIONS - 1 : -1]
    label = "Newest first" if newest else "No decision that can be undone"
    choices = [(decision_line(one), one.id) for one in newest]
    return gr.Radio(label=label, choices=choices, value=newest[0].id if newest else None)
