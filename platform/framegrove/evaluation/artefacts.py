"""What a finished search leaves besides its video: pictures, its tree, its report, and what it can be gone on from."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path as File
from typing import Any

from framegrove.evaluation import tree_page, tree_picture
from framegrove.evaluation.live import branch_facts, branch_id
from framegrove.evaluation.report import SearchRecord, report_json
from framegrove.media.stills import spritesheet, thumbnail


def artefacts(record: SearchRecord) -> dict[str, bytes]:
    """Files by name. Takes a second or two, most of it for pictures of the tree."""
    with tempfile.TemporaryDirectory() as folder:
        picture = File(folder) / "tree.png"
        tree_picture.draw(record, picture)
        drawn = picture.read_bytes()
    return {
        "thumbnail.webp": thumbnail(record.frames),
        "spritesheet.webp": spritesheet(record.frames),
        "tree.png": drawn,
        "tree.html": tree_page.page(record).encode(),
        "tree.json": _json(_tree(record)),
        "report.json": _json(report_json(record)),
    }


def _tree(record: SearchRecord) -> dict[str, Any]:
    """The finished tree in the terms of a running one (live.LiveSearch), with the fate of every branch."""
    outcome = record.outcome
    return {
        "branches": {
            branch_id(node.path): {
                **branch_facts(node),
                "path_score": node.judgements[-1].total if node.judgements else None,
            }
            for node in outcome.nodes
        },
        "winner": branch_id(outcome.winner),
    }


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
