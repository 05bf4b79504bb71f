"""The page in a browser: search, overlay, words, comparison, decisions, erasure, a narrow screen, a password."""

import shutil

import numpy as np
import pytest
from browser_page import BROWSER, PASSWORD, USER, Page, Server, playwright
from PIL import Image

from modeling_mllmreid.gallery.audit import Audit, query_digest
from modeling_mllmreid.gallery.decisions import confirm, decisions, undo
from modeling_mllmreid.gallery.filters import Where
from modeling_mllmreid.gallery.gallery import Gallery
from modeling_mllmreid.gallery.person import rows_of_person
from modeling_mllmreid.gallery.report import decision_line, merge_line
from modeling_mllmreid.gallery.results import counted
from modeling_mllmreid.gallery.rows import CropInfo
from modeling_mllmreid.gallery.unknown_people import gallery_groups, largest_groups
from modeling_mllmreid.serving.page.forms import listed, typed_conditions, uploaded_photos
from modeling_mllmreid.synthetic.worlds import World
from modeling_mllmreid.synthetic.write import write_pedestrians
from modeling_mllmreid.utils.errors import UserError

EVIL = "<img src=x onerror=alert(1)>.jpg"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Eight people from three cameras, a gallery of them, and its images with what is known about each."""
    folder = tmp_path_factory.mktemp("page")
    drawn = World(7, scenes=3, cameras=3, images_per_camera=2, test_identities=8)
    write_pedestrians(folder / "world", drawn, captions_per_image=0, processes=1)
    images = [str(image) for image in sorted((folder / "world/bounding_box_test").glob("0*.jpg"))]
    crops = [CropInfo(camera_id=int(image.split("_c")[-1][0]), time="2026-11-28T08:30:00Z") for image in images]
    return folder, Gallery.create(folder / "gallery", "pedestrians-small"), images, crops


@pytest.fixture
def gallery(world):
    """The gallery with all rows and without a decision, whatever other tests have done."""
    _, gallery, images, crops = world
    gallery.add(images, crops)
    while decisions(gallery):
        undo(gallery)
    return gallery


@pytest.fixture(scope="module")
def queries(world):
    """Query images of the eight people; the first one has HTML in its name."""
    folder = world[0]
    found = [next((folder / "world/query").glob(f"{person:04d}_*.jpg")) for person in range(1, 9)]
    shutil.copy(found[0], folder / EVIL)
    return [folder / EVIL, *found[1:]]


@pytest.fixture(scope="module")
def server(world):
    words = ("--host", "0.0.0.0", "--user", USER)
    server = Server(world[0] / "gallery", *words, MLLMREID_PASSWORD=PASSWORD)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server, gallery):
    page = Page(browser, server.url)
    yield page
    page.page.context.close()
    assert page.errors == []


def ranking(found):
    """What the page shows of a search: rank and distance."""
    return [f"{place}. {hit.distance:.4f}" for place, hit in enumerate(found.hits, start=1)]


def test_a_photo_gives_the_ranking_and_a_filter_changes_it(page, gallery, queries):
    page.upload("photos", queries[0])
    line = page.answer("search", "verdict", "rows")
    found = gallery.search(str(queries[0]))
    captions = page.captions("results", 10)
    assert [lines[0] for lines in captions] == ranking(found)
    assert [lines[-1] == "beyond" for lines in captions] == [hit.beyond for hit in found.hits]
    assert captions[0][1:3] == [f"camera {found.hits[0].crop.camera_id}", "2026-11-28 08:30Z"]
    within = sum(not hit.beyond for hit in found.hits)
    assert 0 < within < 10
    assert line == f"Within the threshold {found.threshold:.4f}: {within} of the 10 nearest of {found.searched} rows."
    # The model of this gallery has no language model, which compares pairs.
    page.page.get_by_text("More", exact=True).click()
    page.page.get_by_text("Number of results").first.wait_for()
    assert not page.page.get_by_text("Verify the first N").is_visible()

    page.fill(cameras="2")
    page.answer("search", "verdict", "nearest of 8 rows")
    found = gallery.search(str(queries[0]), where=Where(cameras=[2]))
    assert [lines[0] for lines in page.captions("results", 8)] == ranking(found)

    # A mistake is one line, and leaves no result next to it.
    page.fill(cameras="two")
    assert page.answer("search", "verdict", "two") == "cameras 'two': give numbers, such as 1, 3"
    page.page.wait_for_selector("text=cameras 'two': give numbers, such as 1, 3")
    assert page.captions("results", 0) == [] and "Traceback" not in page.page.content()
    page.fill(cameras="", words="a red coat")
    assert page.answer("search", "verdict", "query").startswith("query: give a photo, words or an id, and only one")


def test_a_click_explains_what_was_searched(page, queries):
    page.upload("photos", queries[0])
    page.answer("search", "verdict", "rows")
    page.captions("results", 10)
    page.click("results", 0, "overlay: result 1")
    drawn = page.pictures("overlay")
    assert len(drawn) == 2 and page.captions("overlay", 2) == [["query"], ["result 1"]]
    # Another photo in the form, which nobody has searched with.
    page.upload("photos", queries[1])
    page.click("results", 1, "overlay: result 2")
    assert not set(page.pictures("overlay")) & set(drawn)
    page.click("results", 0, "overlay: result 1")
    assert page.pictures("overlay") == drawn
    # After a failure there is nothing to explain.
    page.fill(cameras="two")
    page.answer("search", "verdict", "two")
    assert page.captions("results", 0) == page.captions("overlay", 0) == []
    page.fill(cameras="")
    page.answer("search", "verdict", "rows")
    page.captions("results", 10)
    page.click("results", 0, "overlay: result 1")
    assert not set(page.pictures("overlay")) & set(drawn)


@pytest.mark.slow
def test_words(page, browser, make_model, tiny_processor, tmp_path):
    page.fill(words="a red coat")
    assert page.answer("search", "verdict", "words:") == (
        "words: model pedestrians-small has no language model: give a photo"
    )
    model = make_model(reid_text=True, test_feature="llm").eval()
    model.save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    gallery = Gallery.create(tmp_path / "gallery", str(tmp_path / "model"))
    gallery.add(sorted(map(str, tmp_path.glob("*.png"))))
    server = Server(tmp_path / "gallery")
    try:
        able = Page(browser, server.url)
        able.fill(words="a red coat .")
        line = able.answer("search", "verdict", "rows")
        assert line == "4 nearest of 4 rows; the model has no threshold."
        distances = [hit.distance for hit in gallery.search(words="a red coat .").hits]
        shown = [float(lines[0].split()[1]) for lines in able.captions("results", 4)]
        np.testing.assert_allclose(shown, distances, atol=1e-4)
        # The words that were searched with are explained, not those in the form now.
        able.click("results", 0, "overlay: result 1")
        drawn = able.pictures("overlay")
        able.fill(words="white shoes .")
        able.click("results", 1, "overlay: result 2")
        able.click("results", 0, "overlay: result 1")
        assert able.pictures("overlay") == drawn and len(drawn) == 1
        able.page.context.close()
        assert able.errors == []
    finally:
        server.stop()


def test_two_crops_are_compared(page, gallery, queries, tmp_path):
    page.tab("Compare")
    assert page.answer("compare", "comparison", "give") == "compare: give two crops"
    # A scene with HTML in its name is refused in one line of text, unless it is allowed.
    scene = Image.effect_noise((90, 40), 60).convert("RGB")
    scene.save(tmp_path / EVIL.replace("jpg", "png"))
    page.upload("first", tmp_path / EVIL.replace("jpg", "png"))
    page.upload("second", queries[2])
    line = page.answer("compare", "comparison", "wider than a person")
    assert "png: is 90 x 40 pixels" in line and "\n" not in line
    page.page.wait_for_selector("text=looks like a whole scene")
    page.page.get_by_label("Crops may be wider than a person").check()
    line = page.answer("compare", "comparison", "cosine distance")
    one, other = gallery.encoder.encode([scene, queries[2]])
    assert line.startswith(f"cosine distance {1 - one @ other:.4f}, beyond the threshold of a search 0.5814\n")
    assert "probability of one person" in line
    assert page.captions("compared", 2) == [["first"], ["second"]]


def test_groups_are_confirmed_renamed_split_and_joined(page, gallery):
    rows, found = gallery_groups(gallery, Where())
    largest = largest_groups(rows, found)
    number, ids = next(iter(largest.items()))
    page.tab("People")
    assert page.answer("confirm", "groups", "chosen").startswith("one person: no group is chosen: group the crops")
    merges = counted(len(found.merges), "suggested merge")
    text = f"24 rows, {len(largest)} groups of two or more, {merges}"
    assert page.answer("group", "groups", "rows") == text and len(found.merges)
    page.captions("crops", len(ids))
    assert page.field("choice").input_value() == f"group {number}: {len(ids)} crops"
    page.fill(person="Ida")
    page.answer("confirm", "groups", f"{len(ids)} rows, one person: Ida")
    assert (decisions(gallery)[0].person, decisions(gallery)[0].ids) == ("Ida", sorted(ids))
    page.page.locator("#crops .caption-label", has_text="Ida").first.wait_for()
    assert page.field("choice").input_value() == f"group {number}: {len(ids)} crops, Ida"

    # A click chooses a crop, and another click takes it back.
    page.fill(new="Bo")
    assert page.answer("split", "groups", "split") == ("split: no crop is chosen: click the crops of the other person")
    for place in (0, 1):  # quickly: no click is lost
        page.page.locator("#crops .thumbnail-lg").nth(place).click()
    page.wait("document.querySelector('#crops').innerText.split('chosen').length === 3")
    page.click("crops", 0, "Ida")
    page.answer("split", "groups", "1 row, another person: Bo")
    assert decisions(gallery)[1].ids == [sorted(ids)[1]]
    page.page.locator("#crops .caption-label", has_text="Bo").wait_for()
    assert page.answer("confirm", "groups", "confirm:").startswith("confirm: the rows have the names 'Bo', 'Ida'")
    page.fill(person="Bo", new="<b>Zoe")
    page.answer("rename", "groups", "renamed: <b>Zoe")
    page.page.locator("#crops .caption-label", has_text="<b>Zoe").wait_for()

    # A suggested merge, with the crops of both groups.
    page.tab("Suggested merges")
    merge = found.merges[0]
    first, second = (list(rows.ids[found.labels == label]) for label in (merge.first, merge.second))
    assert page.field("merge").input_value() == f"1. {merge_line(merge)}"
    page.captions("merge-first", len(first))
    page.captions("merge-second", len(second))
    page.fill(merge_person="Eva")
    page.answer("join", "groups", f"{len(first) + len(second)} rows, one person: Eva")
    assert decisions(gallery)[-1].ids == sorted(first + second)
    page.wait("line => document.querySelector('#merge input').value !== line", f"1. {merge_line(merge)}")


def test_a_chosen_decision_is_undone(page, gallery):
    ids = sorted(gallery.rows().ids)
    made = [confirm(gallery, ids[:2], "Ida"), confirm(gallery, ids[2:4], "Bo"), confirm(gallery, ids[:1], "Ida")]
    page.tab("People")
    page.tab("Decisions")
    page.page.wait_for_selector("#decisions label")
    labels = page.page.locator("#decisions label")
    assert [" ".join(text.split()) for text in labels.all_inner_texts()] == [
        " ".join(decision_line(one).split()) for one in reversed(made)
    ]
    assert page.page.locator("#decisions input").first.is_checked()
    labels.nth(2).click()
    line = page.answer("undo", "groups", "undo")
    assert line == f"undo {made[0].id}: decision {made[2].id} changed 1 of its rows later: undo that first"
    labels.nth(1).click()
    assert page.answer("undo", "groups", "undone: ") == f"undone: {decision_line(made[1])}"
    page.wait("document.querySelectorAll('#decisions label').length === 2")
    assert [one.id for one in decisions(gallery)] == [made[0].id, made[2].id]
    page.answer("undo", "groups", f"undone: {made[2].id}")
    page.answer("undo", "groups", f"undone: {made[0].id}")
    page.page.wait_for_selector("#decisions >> text=No decision that can be undone")
    assert page.answer("undo", "groups", "undo: ") == "undo: there is no decision"


def test_rows_that_meet_conditions_are_erased(page, gallery):
    page.tab("Gallery")
    page.wait("document.querySelector('#counts textarea').value.startsWith('24 rows (0 expired), 0 named persons')")
    assert page.answer("preview", "erased", "delete:").startswith("delete: give a condition")
    page.fill(delete_cameras="2")
    page.answer("preview", "erased", "8 rows: click those to keep")
    page.captions("rows", 8)
    page.page.wait_for_selector("text=Erase 8 rows for good")
    # Other conditions: what was shown can no longer be erased.
    page.field("delete-conditions").press_sequentially("person")
    page.page.wait_for_selector("#erase[disabled]")
    assert page.answer("preview", "erased", "where").startswith("where 'person': is no condition")
    assert page.page.locator("#erase[disabled]").count() and page.captions("rows", 0) == []
    page.fill(delete_conditions="", largest="far")
    assert page.answer("preview", "erased", "far").startswith("threshold 'far': is no cosine distance")
    page.fill(largest="")
    page.answer("preview", "erased", "8 rows")
    page.page.wait_for_selector("text=Erase 8 rows for good")
    page.answer("erase", "erased", "8 rows erased, traces: 0")
    page.wait("document.querySelector('#counts textarea').value.startsWith('16 rows')")
    assert not gallery.find(Where(cameras=[2])) and page.page.locator("#erase[disabled]").count()


def test_a_person_found_by_a_photo_is_erased(page, world, gallery, queries):
    shown, beyond = ([hit.id for hit in hits] for hits in rows_of_person(gallery, str(queries[0])))
    assert len(shown) >= 2 and len(beyond) == 5
    page.tab("Gallery")
    page.upload("delete-photos", queries[0])
    page.answer("preview", "erased", f"{len(shown)} rows: click those to keep")
    distances = [hit.distance for hit in gallery.search(str(queries[0]), len(shown)).hits]
    captions = page.captions("rows", len(shown) + 5)
    assert [lines[0] for lines in captions[: len(shown)]] == [f"{value:.4f}" for value in distances]
    # Rows beyond the threshold are kept, unless somebody clicks them.
    assert all(lines[0] == "kept" for lines in captions[len(shown) :])
    page.page.wait_for_selector(f"text=Erase {counted(len(shown), 'row')} for good")
    page.click("rows", len(shown), captions[len(shown)][1])
    # A wrong row is kept; a second click would have it erased again.
    page.click("rows", 1, "kept")
    page.click("rows", 0, "kept")
    page.click("rows", 0, f"{distances[0]:.4f}")
    erased = counted(len(shown), "row")  # without the wrong one, with one beyond the threshold
    page.page.wait_for_selector(f"text=Erase {erased} for good")
    page.answer("erase", "erased", f"{erased} erased, traces: 0")
    assert {*shown, *beyond} & set(gallery.rows().ids) == {shown[1], *beyond[1:]}
    line = list(Audit(world[0] / "gallery.audit").lines())[-1]
    digest = query_digest([queries[0].read_bytes()])
    assert (line["who"], line["action"], line["query"], line["results"]) == (USER, "delete", digest, len(shown))
    # The person is not found any more.
    gallery.delete(Where(ids=[shown[1]]))
    page.tab("Search")
    page.upload("photos", queries[0])
    page.answer("search", "verdict", "Nobody: no image of ")
    assert all(lines[-1] == "beyond" for lines in page.captions("results", 10))


def test_what_the_server_has_forgotten_is_asked_for_again(tmp_path):
    with pytest.raises(UserError, match="^a.jpg: is kept for half an hour and is gone: upload it again$"):
        uploaded_photos([str(tmp_path / "a.jpg")])
    with pytest.raises(UserError, match="^this list is kept for half an hour and is gone: show it again$"):
        listed([], 0)


@pytest.mark.parametrize(
    ("typed", "conditions"),
    [
        ("source=hall, person=Ida", ["source=hall", "person=Ida"]),
        ("person=Ida,person=Bo", ["person=Ida", "person=Bo"]),
        ("person=Doe, Jane", ["person=Doe, Jane"]),
        (" source=a, b ,, person=Doe, Jane, ", ["source=a, b", "person=Doe, Jane"]),
        ("person=", ["person="]),
        ("", []),
        (None, []),
    ],
)
def test_conditions_are_separated_by_commas_which_values_may_hold(typed, conditions):
    assert typed_conditions(None, conditions=typed).equal == conditions


def test_everything_fits_a_narrow_screen(page, queries):
    page.page.set_viewport_size({"width": 390, "height": 844})
    page.upload("photos", queries[0])
    page.answer("search", "verdict", "rows")
    page.captions("results", 10)
    cut = "[...document.querySelectorAll('.answer textarea')].filter(e => e.scrollHeight > e.clientHeight + 1).length"
    fits = "document.documentElement.scrollWidth"
    lines = "document.querySelector('#verdict textarea').clientHeight"
    assert page.page.evaluate(lines) > 40 and page.page.evaluate(cut) == 0
    for name in ("Search", "Compare", "People", "Suggested merges", "Decisions", "Gallery", "About"):
        page.tab(name)
        page.page.wait_for_timeout(300)
        assert page.page.evaluate(fits) == 390, name
    page.tab("People")
    page.tab("Groups")
    page.answer("group", "groups", "rows")
    page.page.wait_for_selector("#crops img")
    assert page.page.evaluate(fits) == 390 and page.page.evaluate(cut) == 0
    # The card of the model is there.
    page.tab("About")
    page.page.wait_for_selector("text=rendered people")


def test_a_password_is_needed(browser, server):
    wrong = browser.new_context(http_credentials={"username": USER, "password": "wrong horse"}).new_page()
    answer = wrong.goto(server.url)
    assert answer.status == 401 and "missing or wrong" in wrong.content() and not wrong.locator("#search").count()
