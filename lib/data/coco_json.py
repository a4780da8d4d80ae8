"""COCO's JSON -> photographs and their objects, every item checked; nothing is left out without a word.

Ids match where they are the same number or text, 1 and "1" too; names of categories in any case, with any blanks.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lib.data.classes import checked_classes
from lib.data.pictures import MOST_PIXELS
from lib.data.segmentations import checked
from lib.machine.files import read_json
from lib.maskrcnn import COURSE_CLASSES

CATEGORIES = {
    "vehicle": ("bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    "person": ("person",),
    "animal": ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"),
}
COURSE_LABELS = {name: COURSE_CLASSES.index(kind) + 1 for kind in CATEGORIES for name in (kind, *CATEGORIES[kind])}
FIELDS = {  # of COCO's JSON, those that are used here
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("image_id", "category_id"),
    "categories": ("id", "name"),
}
NOT_ASKED, CROWD, NO_AREA, SMALL, WITH_IMAGE, UNUSABLE, NO_OBJECT, MANY, BEYOND = ADVICE = {
    "of a category not asked for": "choose categories with --classes, or all with --classes all",
    "a crowd region": "outline its objects one by one (iscrowd 0)",
    "without an area in the frame": "are its polygons points or lines, or outside their image?",
    "smaller than --min-size": "lower --min-size",
    "in an image left out": "see the images",
    "unusable": "correct them, see --skip-broken",
    "without an object": "--keep-empty keeps such images",
    "with more than --max-objects": "raise --max-objects",
    "after --limit": "raise --limit",
}


class Photograph(NamedTuple):
    """An image of a COCO set and its objects of the classes asked for."""

    name: str  # how messages call it: image 5 (a.jpg)
    file_name: str
    size: tuple[int, int]  # (width, height), as declared
    objects: list[tuple[list | dict, int]]  # segmentation and label
    spoilt: list[str]  # why others of these classes are not among them
    url: str  # where COCO's own photographs lie, of others ""


class Report:
    """What became of all that was read: images and objects left out by reason, and sentences of what is unusable."""

    def __init__(self) -> None:
        self.images: Counter[str] = Counter()
        self.objects: Counter[str] = Counter()
        self.not_asked: Counter[str] = Counter()  # objects by category
        self.broken: list[str] = []

    def leave_out(self, photo: Photograph, reason: str) -> None:
        """Count an image, and its objects with it."""
        self.images[reason] += 1
        self.objects[WITH_IMAGE] += len(photo.objects)

    def leave_out_broken(self, photo: Photograph, error: ValueError) -> None:
        """Count an image that cannot be used, and say why."""
        self.broken.append(f"{photo.name}: {error}")
        self.leave_out(photo, UNUSABLE)

    def lost(self) -> dict[str, tuple[int, int]]:
        """By reason, the images and objects that are left out."""
        return {r: (self.images[r], self.objects[r]) for r in ADVICE if self.images[r] or self.objects[r]}

    def advice(self) -> str:
        """The reasons, each with its mend."""
        counts = {r: f"{i} image(s)" if i else f"{o} object(s)" for r, (i, o) in self.lost().items()}
        return "; ".join(f"{count} {r}: {ADVICE[r]}" for r, count in counts.items() if r != WITH_IMAGE)

    def table(self, images: int, objects: int) -> str:
        """All that was read, and what was written of it."""
        rows = {"read": (images + self.images.total(), objects + self.objects.total())}
        rows |= {f"left out: {reason}": counts for reason, counts in self.lost().items()}
        rows["written"] = (images, objects)
        lines = [f"{'':44}    images   objects", *(f"{name:44}{i:10}{o:10}" for name, (i, o) in rows.items())]
        if self.not_asked:
            lines.append("not asked for: " + ", ".join(f"{name} ({n})" for name, n in self.not_asked.most_common()))
        return "\n".join([*lines, *(f"unusable: {text}" for text in self.broken)])


def load_photographs(path: Path, classes: str | None, report: Report) -> tuple[tuple[str, ...], list[Photograph]]:
    """The classes, and the images of a COCO instances JSON, in its order, with their objects of these classes.

    `classes` is what `class_labels` takes. Raises FileNotFoundError, or ValueError for a file that is no such JSON;
    items that cannot be used are named in the report.
    """
    coco = _load_json(path)
    names = _categories(coco["categories"], path)
    chosen, labels = class_labels(classes, list(names.values()), path)
    photographs = _photographs(coco["images"], report)
    for n, annotation in enumerate(coco["annotations"]):
        try:
            _add_object(annotation, n, photographs, names, labels, report)
        except ValueError as error:
            report.broken.append(str(error))
            report.objects[UNUSABLE] += 1
    return chosen, [photo for photo in photographs.values() if photo]


def class_labels(option: str | None, names: list[str], where: object) -> tuple[tuple[str, ...], dict[str, int]]:
    """The classes and, by category in plain writing, the labels that an option asks for of a file's category `names`.

    None: the course's three. "all": each category is a class. "cat=pet,dog": pairs of category and class, in the order
    of their first appearance. "FILE.json": such pairs as a mapping.
    """
    known = {plain(name): name for name in names}
    if option is None:
        if not known.keys() & COURSE_LABELS.keys():
            fix = f"it has {', '.join(names) or 'none'}: choose of these with --classes"
            raise ValueError(f"{where} has none of the categories {', '.join(COURSE_LABELS)}; {fix}")
        return COURSE_CLASSES, COURSE_LABELS
    if option == "all":
        pairs = {name: name for name in known.values()}
    elif option.endswith(".json"):
        pairs = read_json(option)
        if not isinstance(pairs, dict) or not all(isinstance(kind, str) for kind in pairs.values()):
            raise ValueError(f'{option} must be a mapping of categories to classes, such as {{"cat": "pet"}}')
    else:
        halves = [part.partition("=") for part in option.split(",")]
        pairs = {name.strip(): (kind if equals else name).strip() for name, equals, kind in halves}
    for name in pairs:
        if plain(name) not in known:
            raise ValueError(f"--classes: {where} has no category {name!r}; it has {', '.join(names) or 'none'}")
    classes = checked_classes(list(dict.fromkeys(pairs.values())), "--classes")
    return classes, {plain(name): classes.index(kind) + 1 for name, kind in pairs.items()}


def plain(name: str) -> str:
    """A category's name in small letters, blanks as one."""
    return " ".join(name.casefold().split())


def _load_json(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: give a COCO JSON such as instances_val2017.json")
    coco = read_json(path)
    for kind in FIELDS:
        if not isinstance(coco, dict) or not isinstance(coco.get(kind), list):
            raise ValueError(f"{path} has no list '{kind}': give COCO's instances JSON, not captions")
    return coco


def _check_fields(item: Any, kind: str, where: str) -> None:
    if absent := [field for field in FIELDS[kind] if not isinstance(item, dict) or field not in item]:
        raise ValueError(f"{where} of '{kind}' has no '{absent[0]}': export it again")


def _key(value: Any) -> str | None:
    """An id as text, that of 1, 1.0 and "1" the same; None for what is no id."""
    if type(value) is int or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    return value.strip() or None if isinstance(value, str) else None


def _categories(items: list, path: Path) -> dict[str, str]:
    """The names of the categories by id, in the ids' order."""
    names: dict[str, str] = {}
    for n, item in enumerate(items):
        _check_fields(item, "categories", f"{path}: item {n}")
        key, name = _key(item["id"]), item["name"]
        if key is None or type(name) not in (str, int) or names.setdefault(key, str(name)) != str(name):
            raise ValueError(f"{path}: category {item!r:.200}: give it an id of its own, and a text as its name")
    return {key: names[key] for key in sorted(names, key=lambda k: (not k.isdecimal(), k.zfill(20)))}


def _photographs(items: list, report: Report) -> dict[str | None, Photograph | None]:
    """The images by id; None for one that cannot be used."""
    found: dict[str | None, Photograph | None] = {}
    for n, item in enumerate(items):
        key = _key(item.get("id")) if isinstance(item, dict) else None
        try:
            photo = _photograph(item, n)
            if (other := found.setdefault(key, photo)) != photo:
                whose = f"{photo.name} has the id of {other.name if other else 'another'}"
                raise ValueError(f"{whose}: give each image, and its annotations, an id of its own")
        except ValueError as error:
            report.broken.append(str(error))
            report.images[UNUSABLE] += 2 if found.get(key) else 1
            found[key] = None
    return found


def _photograph(item: Any, n: int) -> Photograph:
    """An item of the JSON's images; ValueError where it has no such id, file or size."""
    _check_fields(item, "images", f"item {n}")
    name, file_name = f"image {item['id']!s:.60} ({item['file_name']!s:.200})", item["file_name"]
    if _key(item["id"]) is None:
        raise ValueError(f"{name}, item {n} of 'images': its id is neither a number nor a text")
    if not isinstance(file_name, str) or not file_name.strip() or "\0" in file_name:
        raise ValueError(f"{name}: its file_name is no text that names a file")
    width, height = (_key(item[side]) or "" for side in ("width", "height"))
    if not (width.isdecimal() and height.isdecimal() and 1 <= int(width[:12]) * int(height[:12]) <= MOST_PIXELS):
        sizes = f"{item['width']!s:.20} x {item['height']!s:.20}"
        raise ValueError(f"{name} is declared with {sizes} pixels; 1 to {MOST_PIXELS:,} are read: shrink it")
    return Photograph(name, file_name, (int(width), int(height)), [], [], str(item.get("coco_url", "")))


def _add_object(
    item: Any, n: int, photographs: Mapping[str | None, Photograph | None], names: Mapping[str, str],
    labels: Mapping[str, int], report: Report,
) -> None:  # fmt: skip
    """Give an annotation to its image, or count why not; ValueError where it cannot be used."""
    _check_fields(item, "annotations", f"item {n}")
    what = f"annotation {item['id']!s:.60}" if "id" in item else f"item {n} of 'annotations'"
    for field, ids in (("image_id", photographs), ("category_id", names)):
        if (key := _key(item[field])) is None or key not in ids:
            known = f"the unknown {field} {item[field]!r:.60}"
            raise ValueError(f"{what} has {known}; list that id in the JSON or remove the annotation")
    photo, name = photographs[_key(item["image_id"])], names[_key(item["category_id"]) or ""]
    label = labels.get(plain(name))
    if photo is None:
        report.objects[WITH_IMAGE] += 1
    elif label is None:
        report.objects[NOT_ASKED] += 1
        report.not_asked[name] += 1
    elif item.get("iscrowd"):
        report.objects[CROWD] += 1
        photo.spoilt.append(CROWD)
    else:
        try:
            width, height = photo.size
            photo.objects.append((checked(item.get("segmentation"), height, width, item.get("bbox")), label))
        except ValueError as error:
            photo.spoilt.append(UNUSABLE)
            problem = f"{what} of {photo.name} has no usable segmentation ({error})"
            raise ValueError(f"{problem}: correct or remove it") from None
