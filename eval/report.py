"""The report's files: report.json, sweep.png, examples.png, and index.html, one page that holds everything."""

from __future__ import annotations

import base64
import html
import io
import json
from pathlib import Path

from search.show import write_sheet
from training.errors import SparsightError
from training.files import write_whole

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-weight: 600; } h2 { margin-top: 2.5rem; font-weight: 600; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { text-align: left; padding: .25rem 1rem .25rem 0; }
tr { border-bottom: 1px solid #ddd; } td.n { text-align: right; font-variant-numeric: tabular-nums; }
.examples { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: 1rem; }
.examples div { border: 1px solid #ddd; border-radius: .4rem; padding: .6rem; font-size: .85rem; }
.examples img { width: 96px; height: 96px; image-rendering: auto; display: block; margin-bottom: .4rem;
  object-fit: contain; }
.wrong { color: #a00; } .note { color: #555; font-size: .9rem; } img.plot { max-width: 100%; }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd; } tr { border-color: #444; }
  .note { color: #aaa; } .wrong { color: #f77; } }
"""


def write_report(folder: Path, report: dict, thumbnails: dict[int, bytes]) -> None:
    """Writes the report into `folder`; thumbnails: JPEG bytes by image id, for the examples."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        plot = sweep_plot(report)
        write_whole(folder / "sweep.png", plot)
        examples = [e for kind in report["concepts"]["examples"].values() for e in kind if e["id"] in thumbnails]
        if examples:
            captions = [f"{e['label']} > {e['predicted']}" for e in examples]
            write_sheet(folder / "examples.png", [thumbnails[e["id"]] for e in examples], captions, columns=8)
        write_whole(folder / "index.html", page(report, plot, thumbnails).encode())
        write_whole(folder / "report.json", (json.dumps(report, indent=2) + "\n").encode())
    except OSError as e:
        raise SparsightError(f"cannot write the report to {folder}: {e.strerror}; choose another --out") from e


def sweep_plot(report: dict) -> bytes:
    """PNG of accuracy and concepts per picture against λ."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = report["sweep"]
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    left = figure.add_subplot()
    left.axhline(report["dense"]["accuracy"], color="grey", linestyle="--", linewidth=1, label="dense accuracy")
    left.plot([p["l1"] for p in points], [p["accuracy"] for p in points], "o-", color="tab:blue", label="accuracy")
    left.set_xlabel("λ, as a fraction of each picture's λ_max")
    left.set_ylabel("accuracy", color="tab:blue")
    right = left.twinx()
    right.plot([p["l1"] for p in points], [p["nnz_mean"] for p in points], "s-", color="tab:red", label="concepts")
    right.set_ylabel("concepts per picture", color="tab:red")
    left.legend(loc="lower left", frameon=False)
    left.set_title(f"{report['dataset']['name']} {report['dataset']['split']}, n = {report['dataset']['n']}")
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=130)
    return out.getvalue()


def summary(report: dict) -> str:
    """The report's main lines as text."""
    dense, sparse, memory = report["dense"], report["sparse"], report["memory"]
    lines = [
        f"{report['dataset']['name']} {report['dataset']['split']}, n = {report['dataset']['n']}, "
        f"encoder {report['encoder']['name']}, trained on: {report['encoder']['trained_on']}",
        f"dense   accuracy {_interval(dense)}",
        f"sparse  accuracy {_interval(sparse)}, {sparse['nnz_mean']:.2f} concepts a picture at l1 = {sparse['l1']:g}, "
        f"gap ≤ {sparse['max_relative_gap']:.1e}, {sparse['empty']} empty, cosine {sparse['cosine_mean']:.3f}",
        f"McNemar p = {report['mcnemar_p']:.3g}",
        f"memory  sparse / dense = {100 * memory['ratio']:.2f} % ({memory['sparse_csr_bytes']} / "
        f"{memory['dense_bytes']} bytes); compact {memory['sparse_compact_bytes']} bytes",
    ]
    c = report["concepts"]
    if "top_term_accuracy_sparse" in c:
        lines.append(
            f"strongest concept = file name's term: {c['top_term_accuracy_sparse']:.4f} "
            f"(dense nearest {c['top_term_accuracy_dense']:.4f}); synonyms counted "
            f"{c['top_term_accuracy_sparse_synonyms']:.4f} ({c['top_term_accuracy_dense_synonyms']:.4f})"
        )
    if "top_concept_class_accuracy_sparse" in c:
        lines.append(f"strongest concept in the right class: {c['top_concept_class_accuracy_sparse']:.4f}")
    lines.append(f"{'bytes a picture':<30} accuracy  class@10  term@10  overlap@10  cosine")
    lines += [
        f"{r['name']:<22} {r['bytes_per_image']:>7.1f}   {r['accuracy']:.4f}    {r['class_precision']:.3f}    "
        f"{_term(r):<5}       {r['overlap_with_dense']:.3f}   {r['cosine_mean']:.3f}"
        for r in ladder(report)
    ]
    lines += [f"left out: {r['name']}, {r['reason']}" for r in report["baselines_left_out"]]
    for part, o in report.get("open_words", {}).items():
        lines.append(
            f"open words, {part}: precision@10 dense {o['precision_dense']:.3f}, sparse {o['precision_sparse']:.3f} "
            f"({o['queries']} queries); known score {o['known_queries_median']:.2f}, of meaningless words "
            f"{o['known_nothing_median']:.2f}, separation {o['separation']:.3f}"
        )
    if "corruptions" in report:
        means = corruption_means(report["corruptions"]["rows"])
        lines.append(
            f"corrupted (n = {report['corruptions']['n']}, mean of five severities): "
            + ", ".join(f"{kind} {dense:.3f} / {sparse:.3f}" for kind, dense, sparse in means)
            + " (dense / sparse)"
        )
    return "\n".join(lines)


def ladder(report: dict) -> list[dict]:
    """Every way to keep a picture in few bytes, with the same figures for each: codes, and baselines."""
    codes = [
        {"name": f"sparse, l1 {p['l1']:g}", **p, "bytes_per_image": p["compact_bytes_per_image"]}
        for p in (*report["sweep"], *report["matched"])
    ]
    return codes + report["baselines"]


def corruption_means(rows: list[dict]) -> list[tuple[str, float, float]]:
    """(kind, dense, sparse) accuracy, each kind's mean over its severities."""
    kinds = dict.fromkeys(r["kind"] for r in rows)
    return [
        (kind, *(sum(r[side] for r in of_kind) / len(of_kind) for side in ("dense", "sparse")))  # type: ignore[misc]
        for kind in kinds
        if (of_kind := [r for r in rows if r["kind"] == kind])
    ]


def page(report: dict, plot: bytes, thumbnails: dict[int, bytes]) -> str:
    """The self-contained HTML page."""
    dense, sparse, memory, concepts = report["dense"], report["sparse"], report["memory"], report["concepts"]
    n = report["dataset"]["n"]
    per = memory["sparse_compact_bytes"] / n
    parts = [
        f"<h1>sparsight: {_e(report['dataset']['name'])}, dense against sparse</h1>",
        f"<p>Encoder <b>{_e(report['encoder']['name'])}</b>, {_e(report['encoder']['zero_shot'])}. "
        f"{report['dictionary']['m']} concepts "
        f"({_e(report['dictionary']['source'])}); {n} pictures of the {_e(report['dataset']['split'])} split.</p>",
        _table(
            ["", "accuracy", "95 % interval (Wilson)", "bytes"],
            [
                ["dense", f"{dense['accuracy']:.4f}", _ci(dense), memory["dense_bytes"]],
                ["sparse", f"{sparse['accuracy']:.4f}", _ci(sparse), memory["sparse_csr_bytes"]],
            ],
        ),
        f"<p>McNemar p = {report['mcnemar_p']:.3g}. Sparse memory is {100 * memory['ratio']:.2f} % of dense "
        f"(CSR, int32 + float32, over float32 rows); with 16-bit ids and 8-bit weights {per:.1f} bytes a picture. "
        f"{sparse['nnz_mean']:.2f} concepts a picture at λ = {sparse['l1']:g}"
        f"{' · λ_max' if sparse['l1_relative'] else ''}; {sparse['empty']} empty codes; every relative duality gap "
        f"≤ {sparse['max_relative_gap']:.1e}; mean cosine of x and w D {sparse['cosine_mean']:.3f}.</p>",
        "<h2>Accuracy and concepts against λ</h2>",
        f"<img class='plot' alt='sweep' src='{_data(plot, 'png')}'>",
        _table(
            ["λ / λ_max", "concepts", "accuracy", "cosine", "bytes a picture"],
            [
                [
                    p["l1"],
                    f"{p['nnz_mean']:.2f}",
                    f"{p['accuracy']:.4f}",
                    f"{p['cosine_mean']:.3f}",
                    f"{p['bytes_per_image']:.1f}",
                ]
                for p in report["sweep"]
            ],
        ),
        "<h2>Rivals at few bytes</h2>",
        f"<p class='note'>Codes in the compact layout; FAISS quantisers of the same embeddings, trained on "
        f"{_e(report['baselines_trained_on'])}; the nearest concept alone. Precision and overlap: of the ten nearest "
        f"other pictures, those of the same class, of the same term, and those that the dense index finds too.</p>",
        _table(
            ["code", "bytes a picture", "accuracy", "class@10", "term@10", "overlap@10", "cosine"],
            [
                [
                    _e(r["name"]),
                    f"{r['bytes_per_image']:.1f}",
                    f"{r['accuracy']:.4f}",
                    f"{r['class_precision']:.3f}",
                    _term(r),
                    f"{r['overlap_with_dense']:.3f}",
                    f"{r['cosine_mean']:.3f}",
                ]
                for r in ladder(report)
            ],
        ),
        *(f"<p class='note'>Left out: {_e(r['name'])}, {_e(r['reason'])}.</p>" for r in report["baselines_left_out"]),
        "<h2>Do the concepts name the picture?</h2>",
        _table(
            ["figure", "value"],
            [[k.replace("_", " "), f"{v:.4f}"] for k, v in concepts.items() if isinstance(v, float)],
        ),
    ]
    if "open_words" in report:
        parts += [
            "<h2>Open words</h2>",
            "<p class='note'>Queries that no caption holds; the unseen half was kept from every training choice. The "
            "known score of a text is its cosine with the nearest concept; separation is the probability that a "
            "query's is above a meaningless word's.</p>",
            _table(
                ["queries", "n", "precision@10 dense", "sparse", "known score", "of meaningless words", "separation"],
                [
                    [
                        part,
                        o["queries"],
                        f"{o['precision_dense']:.3f}",
                        f"{o['precision_sparse']:.3f}",
                        f"{o['known_queries_median']:.2f}",
                        f"{o['known_nothing_median']:.2f}",
                        f"{o['separation']:.3f}",
                    ]
                    for part, o in report["open_words"].items()
                ],
            ),
        ]
    if "corruptions" in report:
        c = report["corruptions"]
        parts += [
            "<h2>Corrupted pictures</h2>",
            f"<p class='note'>{c['n']} test pictures; kinds and strengths of CIFAR-10-C.</p>",
            _table(
                ["corruption", "severity", "dense", "sparse"],
                [[r["kind"], r["severity"], f"{r['dense']:.4f}", f"{r['sparse']:.4f}"] for r in c["rows"]],
            ),
        ]
    for kind, title in (("correct", "Right predictions"), ("wrong", "Wrong predictions")):
        cards = "".join(_card(e, thumbnails.get(e["id"])) for e in concepts["examples"][kind])
        parts += [f"<h2>{title}</h2>", f"<div class='examples'>{cards}</div>"]
    disk = [[_e(k), v] for k, v in memory["disk"].items()]
    parts += ["<h2>On disk</h2>", _table(["file, or table of the database", "bytes"], disk)]
    made = ", ".join(f"{k} {v}" for k, v in {**report["hardware"], **report["versions"]}.items())
    parts.append(f"<p class='note'>{_e(made)}</p>")
    body = "\n".join(parts)
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>sparsight report</title><style>{STYLE}</style><body>{body}</body></html>\n"
    )


def _card(example: dict, thumbnail: bytes | None) -> str:
    picture = f"<img alt='' src='{_data(thumbnail, 'jpeg')}'>" if thumbnail else ""
    wrong = " class='wrong'" if example["predicted"] != example["label"] else ""
    concepts = "<br>".join(f"{_e(c['name'])} {c['contribution']:+.3f}" for c in example["concepts"])
    return (
        f"<div>{picture}<b{wrong}>{_e(example['predicted'])}</b> (is {_e(example['label'])}, found under "
        f"“{_e(example['term'] or '?')}”)<br>{concepts}</div>"
    )


def _table(header: list, rows: list[list]) -> str:
    head = "".join(f"<th>{h}</th>" for h in header)
    body = "".join(
        "<tr>" + "".join(f"<td{'' if i == 0 else ' class=n'}>{cell}</td>" for i, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _term(row: dict) -> str:
    return f"{row['term_precision']:.3f}" if "term_precision" in row else "-"


def _interval(part: dict) -> str:
    return f"{part['accuracy']:.4f} ({_ci(part)})"


def _ci(part: dict) -> str:
    return f"{part['ci95'][0]:.4f} – {part['ci95'][1]:.4f}"


def _data(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _e(text: object) -> str:
    return html.escape(str(text))
