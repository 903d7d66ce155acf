"""A local task of lm-evaluation-harness: multiple choice questions by the name of `letters`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TASK = """\
task: letters
dataset_path: json
dataset_kwargs:
  data_files: {test: FOLDER/letters.jsonl}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""


def write_letters_task(folder: Path, questions: Sequence[dict[str, Any]]) -> None:
    """Write the task and its questions, each with `question`, `choices` and `answer`, to a new folder."""
    folder.mkdir()
    (folder / "letters.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    (folder / "letters.yaml").write_text(TASK.replace("FOLDER", str(folder)))
