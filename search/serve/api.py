"""The REST interface: what the page shows, as JSON. Described by /openapi.json; a fault is `{"error": …}`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Annotated, Any

import fastapi
from fastapi import APIRouter, Path, Request
from starlette.concurrency import run_in_threadpool

from search.answers import Answer, EditState, Hit
from search.index import Index
from search.serve import models as m
from search.serve.address import MOST_K, Address, Word
from search.serve.asking import NEWEST, Here, NotHere, ask, check_here
from search.serve.uploads import PREFIX
from training.errors import CallError

FAULTS: dict[int | str, dict[str, Any]] = {
    400: {"model": m.ErrorModel, "description": "The request makes no sense."},
    404: {"model": m.ErrorModel, "description": "The index has no such thing."},
    409: {"model": m.ErrorModel, "description": "The index cannot answer that as it is."},
    413: {"model": m.ErrorModel, "description": "The request is too large."},
    422: {"model": m.ErrorModel, "description": "A value is not what it should be."},
}
PICTURE_BODY = {"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {
    "type": "string", "format": "binary"}}}}}  # fmt: skip

router = APIRouter(prefix="/api", responses=FAULTS)
PictureId = Annotated[int, Path(ge=0, le=NEWEST, description="id of a picture of the index")]
MODES = Annotated[str, fastapi.Query(pattern="^(sparse|dense)$")]


@router.post("/search")
def search(query: m.QueryModel, here: Here) -> m.AnswerModel:
    """The pictures that fit a query, with what each concept adds to their scores."""
    return answered(ask(here, query.query()))


@router.get("/search")
def search_by_address(address: Annotated[Address, fastapi.Query()], here: Here) -> m.AnswerModel:
    """The same, the query spelled as in the address of the page."""
    return answered(ask(here, address.query()))


@router.post("/pictures", openapi_extra=PICTURE_BODY)
async def upload(request: Request, here: Here) -> m.UploadModel:
    """Takes the bytes of a picture to search by, in a format that indexing reads. It is kept in memory for a while."""
    name = await run_in_threadpool(here.uploads.add, await request.body())
    return m.UploadModel(value=PREFIX + name, thumbnail=f"/upload/{name}.jpg")


@router.get("/pictures/{image_id}")
def picture(image_id: PictureId, here: Here) -> m.PictureModel:
    """One picture of the index, and its concepts."""
    with here.holder.index() as index:
        check_here(index, image_id)
        row = index.engine.images([image_id])[0]
        has_thumbnail = bool(index.engine.thumbnails([image_id]))
        previous, following = index.engine.around(image_id)
        concepts = index.explain(image_id).concepts
    return m.PictureModel(
        id=image_id,
        path=row.path,
        label=row.label,
        split=row.split,
        previous=previous,
        next=following,
        concepts=[m.ConceptWeightModel(**asdict(c)) for c in concepts],
        thumbnail=f"/thumbnail/{image_id}.jpg" if has_thumbnail else None,
    )


@router.get("/pictures/{image_id}/explain")
def explain(
    image_id: PictureId, here: Here, text: Word | None = None, k: Annotated[int, fastapi.Query(ge=1, le=MOST_K)] = 10
) -> m.ExplanationModel:
    """What each concept adds to a picture's score for a text, and why it is none of the k best; without a text, what
    each adds for its class."""
    with here.holder.index() as index:
        check_here(index, image_id)
        found = index.explain(image_id, text, k)
    ranks = [m.RankModel(name=name, rank=rank) for name, rank in found.ranks_without]
    helps = [m.HelpModel(name=name, weight=weight) for name, weight in found.would_help]
    return m.ExplanationModel.model_validate(found.to_dict() | {"ranks_without": ranks, "would_help": helps})


@router.get("/pictures/{image_id}/classify")
def classify(
    image_id: PictureId,
    here: Here,
    classes: Annotated[list[m.Name], fastapi.Query(max_length=1000)] = [],  # noqa: B006 (never changed)
    mode: MODES = "sparse",
) -> m.ClassificationModel:
    """Zero-shot classification, among the index's classes or some of your own."""
    if len(set(classes)) < len(classes) or len(classes) == 1:
        raise CallError("classes: give at least two different names")
    with here.holder.index() as index:
        check_here(index, image_id)
        found = index.classify(image_id, classes or None, mode=mode)  # type: ignore[arg-type]
    return m.ClassificationModel.model_validate(found.to_dict() | {"scores": named(found.scores)})


@router.post("/pictures/{image_id}/edit")
def edited(image_id: PictureId, change: m.EditModel, here: Here) -> m.EditedModel:
    """What a picture would be taken for without some of its concepts, or with others."""
    with here.holder.index() as index:
        check_here(index, image_id)
        found = index.edit(image_id, without=change.without, with_=change.with_, text=change.text)
    return m.EditedModel(before=state_of(found.before), after=state_of(found.after))


@router.get("/classes/{label}")
def class_of(label: Annotated[m.Name, Path()], here: Here) -> m.ClassModel:
    """A class, and the concepts without which some of its pictures would be given another."""
    with here.holder.index() as index:
        return class_here(index, label)


@router.get("/concepts")
def concepts(
    here: Here,
    find: Word = "",
    k: Annotated[int, fastapi.Query(ge=1, le=100_000)] = MOST_K,
) -> list[m.ConceptModel]:
    """The concepts whose name or alias holds some letters, the most frequent first."""
    with here.holder.index() as index:
        known = index.concepts()
    return [described(concept) for concept in ordered(known, find)[:k]]


@router.get("/concepts/{name}")
def concept(
    name: Annotated[m.Name, Path()], here: Here, k: Annotated[int, fastapi.Query(ge=1, le=MOST_K)] = 10
) -> m.ConceptDetailModel:
    """One concept, and those nearest in meaning."""
    with here.holder.index() as index:
        found = concept_here(index, name)
        near = index.near_concepts(found.name, min(k + 1, len(index.concepts())))
    shown = [m.NearModel(name=n, cosine=cosine) for n, cosine in near if n != found.name][:k]
    return m.ConceptDetailModel(**described(found).model_dump(), near=shown)


@router.get("/state")
def state(here: Here) -> m.IndexModel:
    """What the index holds."""
    with here.holder.index() as index:
        meta = index.meta
        return m.IndexModel(
            folder=index.engine.name,
            dataset=meta.dataset,
            pictures=meta.n,
            concepts=meta.m,
            postings=meta.nnz,
            dimensions=meta.d,
            generation=meta.generation,
            encoder=meta.encoder_name,
            dictionary=meta.dictionary,
            residual=meta.residual,
            keeps_vectors=meta.keeps_vectors,
            trouble=here.holder.trouble,
        )


@router.post("/doctor")
def doctor(here: Here) -> list[m.FindingModel]:
    """Reads and checks all of the index, as `sparsight doctor` does. That may take a while."""
    from indexer.store.doctor import examine  # imports torch

    if not here.examining.acquire(blocking=False):
        raise CallError("the index is being examined: wait for that answer")
    try:
        folders = here.holder.folders
        found = [(f"{folder.name}: " if len(folders) > 1 else "", examine(folder)) for folder in folders]
        return [
            m.FindingModel(**asdict(replace(finding, message=shard + finding.message)))
            for shard, findings in found
            for finding in findings
        ]
    finally:
        here.examining.release()


def answered(found: Answer) -> m.AnswerModel:
    return m.AnswerModel(
        query=found.query.to_dict(),
        mode=found.mode,
        hits=hits_of(found.hits),
        cut_off=found.cut_off,
        left_out=found.left_out,
        notes=found.notes,
    )


def hits_of(hits: Iterable[Hit]) -> list[m.HitModel]:
    return [m.HitModel(**asdict(hit)) for hit in hits]


def state_of(found: EditState) -> m.StateModel:
    return m.StateModel(scores=named(found.scores), neighbours=hits_of(found.neighbours), rank=found.rank)


def named(scores: Iterable[tuple[str, float]]) -> list[m.ScoreModel]:
    return [m.ScoreModel(name=name, score=score) for name, score in scores]


def described(concept: Any) -> m.ConceptModel:
    return m.ConceptModel(
        name=concept.name, aliases=list(concept.aliases), parent=concept.parent, images=concept.images
    )


def ordered(known: Iterable[Any], find: str) -> list[Any]:
    """The concepts whose name or alias holds some letters, the most frequent first."""
    wanted = " ".join(find.split()).casefold()
    found = (c for c in known if any(wanted in n.casefold() for n in (c.name, *c.aliases)))
    return sorted(found, key=lambda c: (-c.images, c.name))


def class_here(index: Index, label: str) -> m.ClassModel:
    """A class by its name; raises `NotHere` where there is none."""
    try:
        name = index.class_name(label)
    except CallError as e:
        raise NotHere(str(e)) from e
    flips = [m.FlipModel(concept=concept, pictures=n) for concept, n in index.flips(name)]
    return m.ClassModel(name=name, pictures=index.count(labels=[name]), flips=flips)


def concept_here(index: Index, name: str) -> Any:
    """A concept by its name or alias; raises `NotHere` with near names where there is none."""
    try:
        return index.concepts()[index.concept_id(name)]
    except CallError as e:
        raise NotHere(str(e)) from e
