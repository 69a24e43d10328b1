"""Fine-tuned models as ONNX and TorchScript: the same answers, in shapes that nobody recorded."""

import sys

import pytest
import torch

import megabert
from megabert.serving import export

reference = pytest.importorskip("onnx.reference")


def model_of(name, **settings):
    torch.manual_seed(0)
    config = megabert.MegatronBertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, **settings,
    )  # fmt: skip
    return getattr(megabert, f"MegatronBertFor{name}")(config).eval()


def answers(path, rows):
    if path.suffix != ".onnx":
        return [one.detach() for one in torch.jit.load(path)(*rows)]
    inputs = {name: row.numpy() for name, row in zip(export.INPUTS, rows, strict=True)}
    return [torch.from_numpy(one) for one in reference.ReferenceEvaluator(str(path)).run(None, inputs)]


CASES = {
    "a class by the pooler": ("SequenceClassification", {"num_labels": 3}, (), ()),
    "a class by NeMo's head": ("SequenceClassification", {"num_labels": 3, "head_layers": 2}, (), ()),
    "two classifiers": ("TokenClassification", {"num_labels": 5, "head_layers": 2, "head_parts": [2, 3]}, (2, 3),
                        ("intent_logits[CLS]", "slot_logits")),
    "answers": ("QuestionAnswering", {}, (), ()),
    "choices": ("MultipleChoice", {}, (), ()),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_files_answer_as_the_model_does(case, tmp_path):
    name, settings, parts, names = CASES[case]
    module = export.Exported(model_of(name, **settings), parts, names)
    assert module.outputs == (("intent_logits", "slot_logits") if parts else ("logits",))
    # Other numbers of rows and tokens than those recorded; long enough for the kernels that a recording leaves out.
    rows = export.example_of(module.model, 4, 40)
    with torch.no_grad():
        expected = module(*rows)
    if parts:
        assert [tuple(one.shape) for one in expected] == [(4, 2), (4, 40, 3)]
    for suffix in (".ts", ".onnx"):
        export.write(module, tmp_path / f"model{suffix}")
        found = answers(tmp_path / f"model{suffix}", rows)
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.ts"]


def test_what_cannot_be_written_is_told(tmp_path, monkeypatch):
    module = export.Exported(model_of("QuestionAnswering"))
    with pytest.raises(ValueError, match=r"\.onnx, \.ts or \.pt is needed"):
        export.write(module, tmp_path / "model.bin")
    with pytest.raises(ValueError, match="there is no folder"):
        export.write(module, tmp_path / "gone" / "model.ts")
    with pytest.raises(ValueError, match="version 9 of ONNX"):
        export.write(module, tmp_path / "model.onnx", opset=9)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match=r"pip install 'megabert\[onnx\]'"):
        export.write(module, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
