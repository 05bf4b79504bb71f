"""`gallery`: adds person crops to a gallery, searches them, groups them, and erases them."""

import difflib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..gallery.audit import Audit, audit_of, query_digest
from ..gallery.decisions import Decision, confirm, decisions, rename, split, undo
from ..gallery.encoder import ModelEncoder
from ..gallery.export import export_rows
from ..gallery.filters import Where
from ..gallery.folder import find_crops
from ..gallery.gallery import Gallery, Limit
from ..gallery.indexing import build_index
from ..gallery.person import rows_of_person
from ..gallery.pictures import check_proportions
from ..gallery.query import check_has_photo
from ..gallery.reasons import reason_lines, reasons
from ..gallery.reembedding import reembed
from ..gallery.report import (
    SHOWN,
    decision_line,
    draw_found,
    group_line,
    image_files,
    merge_line,
    print_erased,
    print_found,
    print_to_erase,
)
from ..gallery.results import Found, Hit, counted
from ..gallery.unknown_people import duplicates, gallery_groups, largest_groups, read_groups, write_groups
from ..options.arguments import MethodArguments, OnnxArguments
from ..options.gallery_arguments import (
    AddArguments,
    DecisionArguments,
    DecisionsArguments,
    DeleteArguments,
    ExpireArguments,
    ExportArguments,
    GalleryModelArguments,
    GroupsArguments,
    IndexArguments,
    InfoArguments,
    PlaceArguments,
    QueryArguments,
    RenameArguments,
    UndoArguments,
    WhereArguments,
    storage_options,
)
from ..options.help_text import program_name
from ..options.parser import parse
from ..retrieval.embeddings import printable
from ..utils.errors import UserError
from ..utils.outputs import check_new_file, check_output
from ..utils.processes import on_main


def main(argv: list[str]) -> None:
    """Runs one of the commands in `COMMANDS`."""
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help", "help"):
        program = f"{program_name()} gallery"
        lines = [f"  {command:<9} {(run.__doc__ or '').splitlines()[0]}" for command, run in COMMANDS.items()]
        print(f"usage: {program} [{'|'.join(COMMANDS)}] [config.yaml] [--field value ...]", "", *lines, "", sep="\n")
        print(f"`{program} COMMAND --help` lists the fields of a command.")
        raise SystemExit(0)
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name[:80], COMMANDS, n=1, cutoff=0.0)[0]
        raise UserError(f"gallery: unknown command {name[:80]!r}: did you mean {nearest!r}?")
    COMMANDS[name](rest)


def add(argv: list[str]) -> None:
    """Add the images of a folder; the first call creates the gallery."""
    groups = (PlaceArguments, AddArguments, GalleryModelArguments, MethodArguments, OnnxArguments)
    place, args, model, method, onnx = parse(groups, argv, "gallery add")
    images, crops, left_out = on_main(find_crops, args)
    settings = [*method.given(), *onnx.given(), *(["flip_test"] if model.flip_test else [])]
    if model.model is None and settings:
        raise UserError(f"gallery add: {settings[0]} is a setting of the model: add --model, or leave it out")
    encoder = None if model.model is None else ModelEncoder(model, method.given(), onnx, model.flip_test)
    options = storage_options(place.storage_options)
    on_main(_create, place.gallery, encoder, args.keep, options)
    gallery = Gallery(place.gallery, encoder, options)
    new = gallery.add(images, crops)
    there = len(images) - new
    total = counted(len(gallery.rows()), "row")
    lines = [f"{counted(new, 'image')} added, {there:,} already there: {total} in {printable(place.gallery)}"]
    if left_out:
        names = ", ".join(map(printable, list(left_out)[:SHOWN]))
        lines.append(f"left out: {counted(len(left_out), 'file')} that cannot be used: {names}")
    on_main(print, *lines, sep="\n")


def search(argv: list[str]) -> None:
    """Find the images that are most similar to a photo, words, or an image of the gallery."""
    groups = (PlaceArguments, QueryArguments, WhereArguments, GalleryModelArguments)
    place, args, where_args, model = parse(groups, argv, "gallery search")
    gallery, where = _open(place, model), _where(where_args)
    _check_photos(args.query, args.any_shape)
    if args.output:
        check_output(args.output, inputs=args.query)
    limit: Limit = "model" if args.threshold is None else args.threshold
    asked: dict[str, Any] = {"words": args.words, "id": args.id, "where": where, "threshold": limit}
    asked |= {"rerank": args.rerank, "approximate": args.approximate, "verify_top": args.verify_top}
    if args.reasons:
        check_has_photo(args.query or None, args.id, "reasons")
    found = gallery.search(args.query or None, args.top_k, **asked)
    made = reasons(gallery, found.hits[: args.reasons], args.query or None, args.id) if args.reasons else []
    text = args.words or args.id or ""
    digest = query_digest([Path(query).read_bytes() for query in args.query], text)
    _audit(place).write("search", query=digest, where=where, results=len(found.hits), verify_top=args.verify_top)
    print_found(found)
    if made:
        print("", *reason_lines(made), sep="\n")
    if args.output:
        draw_found(args.output, gallery, found, args.query[0] if args.query else None, text)


def delete(argv: list[str]) -> None:
    """Show the rows that meet conditions or show a person, and erase them for good with --confirm true."""
    groups = (PlaceArguments, DeleteArguments, WhereArguments, GalleryModelArguments)
    place, args, where_args, model = parse(groups, argv, "gallery delete")
    gallery, where = _open(place, model), _where(where_args)
    _check_photos(args.query, args.any_shape)
    if args.output:
        check_output(args.output, inputs=args.query)
    beyond: list[Hit] = []
    if args.query:
        limit: Limit = "model" if args.threshold is None else args.threshold
        hits, beyond = rows_of_person(gallery, args.query, where, limit)
        digest = query_digest([Path(query).read_bytes() for query in args.query])
        if not args.confirm:
            _audit(place).write("search", query=digest, where=where, results=len(hits))
        where = Where(ids=[hit.id for hit in hits])
    elif not where:
        raise UserError("delete: give a photo or a condition, such as --where person=NAME")
    else:
        hits = gallery.find(where)
    print_to_erase(hits, beyond, ranked=bool(args.query))
    if args.output and hits:
        photo = args.query[0] if args.query else None
        draw_found(args.output, gallery, Found(hits, None, len(hits)), photo, str(where))
    if not hits:
        raise UserError(
            "delete: no row is within the threshold: give another photo, or a larger --threshold"
            if args.query
            else f"delete: no row meets {where}: gallery export lists the values of all rows"
        )
    if not args.confirm:
        print(f"nothing is erased: to erase {counted(len(hits), 'row')}, repeat the command with --confirm true")
        if image_files(hits) and not args.files:
            print(
                "their image files stay, and gallery add of the folder brings the rows back: --files true deletes them"
            )
        return
    _audit(place).check()
    erased = gallery.delete(where, files=args.files)
    _audit(place).write("delete", query=digest if args.query else None, where=where, results=erased.rows)
    print_erased(erased)
    if left := image_files(hits):
        files = counted(len(left), "image file")
        print(f"still there: {files}, such as {printable(left[0])}: gallery add of the folder brings the rows back")


def expire(argv: list[str]) -> None:
    """Erase the rows whose time has come, and what killed processes left; run it daily."""
    place, args = parse((PlaceArguments, ExpireArguments), argv, "gallery expire")
    gallery = _open(place)
    _audit(place).check()
    erased = gallery.expire(files=args.files)
    _audit(place).write("expire", results=erased.rows)
    print_erased(erased)


def info(argv: list[str]) -> None:
    """Print the counts, the cameras, the size and the model of a gallery."""
    place, args = parse((PlaceArguments, InfoArguments), argv, "gallery info")
    values = _open(place).info()
    if args.json:
        print(json.dumps(values, indent=1))
        return
    cameras = ", ".join(f"{camera}: {count:,}" for camera, count in values["cameras"].items())
    print(f"rows      {values['rows']:,} ({values['expired']:,} expired), {values['persons']:,} named persons")
    print(f"cameras   {cameras or 'none'}")
    print(f"times     {values['first'] or 'unknown'} to {values['last'] or 'unknown'}")
    print(f"size      {values['bytes'] / 2**20:,.1f} MiB")
    model = values["model"]
    print(
        f"model     {printable(model['model'])}: {model['feature']}, {model['numbers']} numbers, keeps {model['keep']}"
    )
    index = "none" if values["index"] is None else f"a search with --approximate reads {values['index']:,} parts"
    print(f"index     {index}")
    if values["unfinished_erasure"]:
        print("an erasure was interrupted: run gallery expire to finish it")


def export(argv: list[str]) -> None:
    """Write rows to a CSV, JSON or Parquet file."""
    place, args, where_args = parse((PlaceArguments, ExportArguments, WhereArguments), argv, "gallery export")
    count = export_rows(_open(place), args.output, _where(where_args))
    print(f"{counted(count, 'row')}: {printable(args.output)}")


def groups(argv: list[str]) -> None:
    """Group crops that are probably one person, and suggest which groups a human should look at."""
    place, args, where_args, model = parse(
        (PlaceArguments, GroupsArguments, WhereArguments, GalleryModelArguments), argv, "gallery groups"
    )
    if args.output:
        check_new_file(args.output)
    gallery = _open(place, model)
    options = {"confidence": args.confidence, "travel_seconds": args.travel_seconds}
    rows, found = gallery_groups(gallery, _where(where_args), **options, overlapping=_pairs(args.overlapping))
    if args.output:
        # Before the lists, which a reader such as `head` may cut.
        write_groups(args.output, rows, found)
    largest = largest_groups(rows, found)
    alone = len(rows) - sum(map(len, largest.values()))
    several = counted(len(largest), "group")
    print(f"{counted(len(rows), 'row')}: {several} of two or more, {counted(alone, 'row')} alone")
    for group, ids in list(largest.items())[:SHOWN]:
        print(group_line(rows.part(rows.places(ids)), group))
    for merge in found.merges[:SHOWN]:
        print(f"perhaps one person: {merge_line(merge)}")
    for first, second in duplicates(gallery, found) if args.duplicates else ():
        print(f"almost the same picture: {first[:16]} and {second[:16]}")
    if args.output:
        print(f"groups: {printable(args.output)}")


def confirm_rows(argv: list[str]) -> None:
    """Decide that groups or rows are one person."""
    _decide(argv, "confirm", confirm)


def rename_person(argv: list[str]) -> None:
    """Give a person another name, or the name of another person if both are one."""
    place, args = parse((PlaceArguments, RenameArguments), argv, "gallery rename")
    gallery = _open(place)
    _audit(place).check()
    _report(place, rename(gallery, args.person, args.new))


def split_rows(argv: list[str]) -> None:
    """Decide that some rows of a person are another one."""
    _decide(argv, "split", split)


def undo_decision(argv: list[str]) -> None:
    """Take a decision back; by default the newest."""
    place, args = parse((PlaceArguments, UndoArguments), argv, "gallery undo")
    gallery = _open(place)
    _audit(place).check()
    undone = undo(gallery, args.decision)
    _audit(place).write("undo", query=undone.id, results=len(undone.ids))
    print(f"undone: {decision_line(undone)}")


def list_decisions(argv: list[str]) -> None:
    """List the decisions that can be undone, oldest first."""
    place, args = parse((PlaceArguments, DecisionsArguments), argv, "gallery decisions")
    made = decisions(_open(place))
    if args.json:
        print(json.dumps([{**asdict(one), "time": one.time.isoformat()} for one in made], ensure_ascii=False, indent=1))
        return
    print(*map(decision_line, made), sep="\n") if made else print("no decisions")


def index(argv: list[str]) -> None:
    """Build an index for galleries that do not fit into memory, and print what it finds."""
    place, args = parse((PlaceArguments, IndexArguments), argv, "gallery index")
    built = build_index(_open(place), recall=args.recall, k=args.top_k)
    print(f"{built.rows:,} rows in {counted(built.partitions, 'part')}; a search reads the nearest {built.probes:,}")
    print(f"recall of the nearest {built.k}: {built.recall:.3f} of those of the exact search (sampled rows as queries)")


def reembed_all(argv: list[str]) -> None:
    """Compute all features again with another model."""
    groups = (PlaceArguments, GalleryModelArguments, MethodArguments, OnnxArguments)
    place, model, method, onnx = parse(groups, argv, "gallery reembed")
    if model.model is None:
        raise UserError("gallery reembed: model is not given: add --model")
    gallery = _open(place)
    new = reembed(gallery, ModelEncoder(model, method.given(), onnx, model.flip_test))
    print(f"{counted(len(new.rows()), 'row')} with features of {printable(new.metadata.model)} now")


COMMANDS = {
    "add": add,
    "search": search,
    "delete": delete,
    "expire": expire,
    "info": info,
    "export": export,
    "groups": groups,
    "confirm": confirm_rows,
    "rename": rename_person,
    "split": split_rows,
    "undo": undo_decision,
    "decisions": list_decisions,
    "index": index,
    "reembed": reembed_all,
}


def _create(place: str, encoder: ModelEncoder | None, keep: Any, options: dict[str, str]) -> None:
    """Creates a gallery, unless there is one."""
    if Gallery.is_at(place, options):
        kept = Gallery(place, options=options).metadata.keep
        if keep not in (None, kept):
            raise UserError(f"gallery {place}: keeps {kept} of its images, not {keep}: leave keep out")
        return
    if encoder is None:
        raise UserError(f"gallery {place}: does not exist yet: add --model, such as pedestrians-small")
    Gallery.create(place, encoder, keep=keep or "file_name", options=options)


def _open(place: PlaceArguments, model: GalleryModelArguments | None = None) -> Gallery:
    """Opens the gallery, with a model that was moved where one is given."""
    return Gallery(place.gallery, None if model is None else model.model, storage_options(place.storage_options))


def _where(args: WhereArguments) -> Where:
    """Returns the conditions."""
    return Where(cameras=args.cameras, since=args.since, until=args.until, equal=args.where)


def _audit(place: PlaceArguments) -> Audit:
    """Returns the audit trail of a gallery."""
    return audit_of(place.gallery, place.audit, place.audit_days)


def _decide(argv: list[str], command: str, decide: Callable[[Gallery, Sequence[str], str | None], Decision]) -> None:
    """Makes a decision about rows that are chosen by groups or conditions."""
    place, args, where = parse((PlaceArguments, DecisionArguments, WhereArguments), argv, f"gallery {command}")
    gallery = _open(place)
    _audit(place).check()
    _report(place, decide(gallery, _rows(gallery, args, where, command), args.person))


def _rows(gallery: Gallery, args: DecisionArguments, where_args: WhereArguments, command: str) -> list[str]:
    """Returns the ids of the rows that are chosen by groups or by conditions. Raises UserError."""
    where = _where(where_args)
    if (args.groups is None) != (not args.group):
        raise UserError(f"{command}: groups and group belong together: give a file and the numbers of its groups")
    if bool(where) == bool(args.group):
        raise UserError(f"{command}: choose rows by --groups and --group, or by conditions such as --where id=ID")
    return read_groups(args.groups, args.group) if args.groups else [hit.id for hit in gallery.find(where)]


def _report(place: PlaceArguments, made: Decision) -> None:
    """Prints a decision, and writes it to the audit trail."""
    _audit(place).write(made.action, query=made.id, results=len(made.ids))
    print(decision_line(made))


def _check_photos(photos: Sequence[str], any_shape: bool) -> None:
    """Raises UserError for a photo that looks like a scene."""
    for photo in photos if not any_shape else ():
        check_proportions(photo)


def _pairs(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Returns pairs of cameras. Raises UserError for a text that is none."""
    pairs = []
    for text in texts:
        first, _, second = text.partition("-")
        if not (first.isdigit() and second.isdigit()):
            raise UserError(f"overlapping {text!r}: is no pair of cameras: write 1-2")
        pairs.append((int(first), int(second)))
    return pairs
