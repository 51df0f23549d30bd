"""What goes in and out over the REST interface, as /openapi.json describes it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from search.query import MOST_TERMS, MOST_WEIGHT, GroupBy, Kind, Query, QueryMode
from search.serve.address import MOST_K, Diverse, Word, Words

Name = Annotated[str, StringConstraints(min_length=1, max_length=300)]
Names = Annotated[list[Name], Field(max_length=MOST_TERMS)]
Weight = Annotated[float, Field(ge=-MOST_WEIGHT, le=MOST_WEIGHT, allow_inf_nan=False)]


class Given(BaseModel):
    """What is sent: a name that is not known is refused, not passed over."""

    model_config = ConfigDict(extra="forbid")


class TermModel(Given):
    """One part of the sum that is looked for. A picture is an id of the index, or `upload:HASH`."""

    kind: Kind
    value: Name
    weight: Weight = 1.0


class QueryModel(Given):
    """The query that the command line and Python spell too, without SQL."""

    terms: list[TermModel] = Field([], max_length=MOST_TERMS)
    require: Words = []
    forbid: Words = []
    labels: Words = []
    splits: Words = []
    path: Word | None = None
    mode: QueryMode | None = None
    fuse: bool = False
    diverse: Diverse = 0.0
    group_by: GroupBy | None = None
    k: int = Field(10, ge=1, le=MOST_K)
    all: bool = False

    def query(self) -> Query:
        return Query.from_dict(self.model_dump(exclude_unset=True))


class ConceptWeightModel(BaseModel):
    name: str
    weight: float
    contribution: float


class HitModel(BaseModel):
    """One picture that was found; the contributions and the rest add up to its score."""

    rank: int
    id: int
    score: float
    path: str
    label: str | None
    concepts: list[ConceptWeightModel]
    rest: float
    chance: float | None = Field(description="how often an unrelated text would find a picture of this score")
    matches: bool
    others: list[int] = Field(description="pictures that were folded into this one by group_by")


class AnswerModel(BaseModel):
    query: dict[str, Any]
    mode: str
    hits: list[HitModel]
    cut_off: float | None = Field(description="the score below which a hit says nothing")
    left_out: int = Field(description="how many of the k lay below it")
    notes: list[str]


class PictureModel(BaseModel):
    """A picture of the index."""

    id: int
    path: str
    label: str | None
    split: str | None
    previous: int | None
    next: int | None
    concepts: list[ConceptWeightModel]
    thumbnail: str | None


class ConceptModel(BaseModel):
    """A concept, and how many pictures it helps to make up."""

    name: str
    aliases: list[str]
    parent: str | None
    images: int


class NearModel(BaseModel):
    name: str
    cosine: float


class ConceptDetailModel(ConceptModel):
    near: list[NearModel]


class EditModel(Given):
    """A change of a picture's code: concepts taken out, concepts given a weight."""

    without: Names = []
    with_: dict[Name, Weight] = Field({}, alias="with", max_length=MOST_TERMS)
    text: Name | None = None


class FlipModel(BaseModel):
    """A concept, and how many pictures of a class would be given another class without it."""

    concept: str
    pictures: int


class ClassModel(BaseModel):
    """A class: the pictures that are labelled so, and the concepts that it hangs on, those of most pictures first."""

    name: str
    pictures: int
    flips: list[FlipModel]


class ScoreModel(BaseModel):
    name: str
    score: float


class StateModel(BaseModel):
    """What a picture is taken for: classes, neighbours, and its rank for the text."""

    scores: list[ScoreModel]
    neighbours: list[HitModel]
    rank: int | None


class EditedModel(BaseModel):
    before: StateModel
    after: StateModel


FAMILIARITY = Field(description="the share of known pictures that lie as far out; null where too few are known")


class ClassificationModel(BaseModel):
    label: str
    scores: list[ScoreModel]
    concepts: list[ConceptWeightModel]
    rest: float = Field(description="what lies outside the concepts adds to the first score")
    familiarity: float | None = FAMILIARITY
    notes: list[str]


class RankModel(BaseModel):
    """The rank that a picture would have without what a concept adds."""

    name: str
    rank: int


class HelpModel(BaseModel):
    """A concept, and the weight of it that would have to be added."""

    name: str
    weight: float


class ExplanationModel(BaseModel):
    target: str
    label: str | None
    text: str
    dense_score: float | None = Field(description="null where the index keeps no embeddings")
    sparse_score: float
    cosine: float | None = Field(description="of the embedding and what the codes hold; null where it is not kept")
    concepts: list[ConceptWeightModel]
    rest: float = Field(description="what the residual adds to the sparse score; 0 in an index without")
    rank: int | None = Field(description="among all pictures by the dense score, where a text was given")
    ranks_without: list[RankModel]
    k: int = Field(description="of how many hits it may be one")
    short: float = Field(description="what its score lacks to be among these")
    would_help: list[HelpModel] = Field(description="concepts that would bring it there")
    familiarity: float | None = FAMILIARITY
    notes: list[str]


class UploadModel(BaseModel):
    """An uploaded picture; `value` is what a term of kind picture names it by."""

    value: str
    thumbnail: str


class IndexModel(BaseModel):
    """The state of the index."""

    folder: str
    dataset: str
    pictures: int
    concepts: int
    postings: int
    dimensions: int
    generation: int
    encoder: str
    dictionary: str
    residual: str = Field(description="the FAISS description of what is kept beside the concepts; empty for nothing")
    keeps_vectors: bool = Field(description="false where no exact embeddings are kept: mode sparse alone answers")
    trouble: str


class FindingModel(BaseModel):
    check: str
    status: str
    message: str
    hint: str


class ErrorModel(BaseModel):
    """What was wrong, in one line."""

    error: str
