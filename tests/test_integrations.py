"""PEFT around a ModernBERT, accelerated in place."""

import copy

import hf_models as hf
import pytest
import torch

import modernbert_fast as mf

pytestmark = pytest.mark.usefixtures("one_thread")

SEQUENCE = "ModernBertForSequenceClassification"


def given():
    return {**hf.batch("right").inputs(SEQUENCE), "labels": torch.tensor([0, 1, 1, 0])}


@pytest.fixture(scope="module")
def peft():
    return pytest.importorskip("peft")


def adapted(peft, model, **options):
    """A LoRA model whose adapters are not zero, the same for the same base."""
    targets = {"r": 4, "lora_alpha": 8, "target_modules": ["Wqkv", "Wo", "Wi"], **options}
    model = peft.get_peft_model(model, peft.LoraConfig(**targets))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def assert_equal_models(actual, expected):
    outputs = []
    for model in (actual, expected):
        model.zero_grad()
        outputs.append(model(**given()))
        outputs[-1].loss.backward()
    assert hf.relative(outputs[0].logits, outputs[1].logits) <= 1e-5
    assert hf.relative(outputs[0].loss, outputs[1].loss) <= 1e-5
    grads = hf.gradients(expected)
    assert grads and grads.keys() == hf.gradients(actual).keys()
    for name, gradient in grads.items():
        assert hf.relative(hf.gradients(actual)[name], gradient) <= 1e-4, name


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("modules_to_save", [None, ["classifier"], ["head", "classifier"]])
def test_lora(peft, order, modules_to_save):
    base = hf.build(SEQUENCE, hf.tiny_config())
    options = {"task_type": "SEQ_CLS", "modules_to_save": modules_to_save}
    expected = adapted(peft, copy.deepcopy(base), **options)
    if order == "before":
        actual = adapted(peft, mf.accelerate(copy.deepcopy(base)), **options)
    else:
        actual = adapted(peft, copy.deepcopy(base), **options)
        assert mf.accelerate(actual) is actual
    assert mf.is_accelerated(actual)
    assert_equal_models(actual, expected)


def test_lora_on_norms_and_embeddings(peft):
    base = hf.build(SEQUENCE, hf.tiny_config())
    options = {
        "target_modules": ["Wqkv", "tok_embeddings", "dense"],
        "modules_to_save": ["final_norm", "mlp_norm", "classifier"],
    }
    expected = adapted(peft, copy.deepcopy(base), **options)
    actual = adapted(peft, mf.accelerate(base), **options)
    assert_equal_models(actual, expected)


def test_lora_on_the_decoder_with_loss_only(peft):
    base = hf.build("ModernBertForMaskedLM", hf.tiny_config(tie_word_embeddings=False))
    options = {"target_modules": ["Wi", "decoder", "dense"]}
    expected = adapted(peft, copy.deepcopy(base), **options)
    actual = adapted(peft, mf.accelerate(base, loss_only=True), **options)
    batch = hf.batch("right")
    given = {**batch.inputs("ModernBertForMaskedLM"), **batch.targets("ModernBertForMaskedLM", base.config)}
    losses = []
    for model in (actual, expected):
        losses.append(model(**given).loss)
        losses[-1].backward()
    assert hf.relative(*losses) <= 1e-5
    for name, gradient in hf.gradients(expected).items():
        assert hf.relative(hf.gradients(actual)[name], gradient) <= 1e-4, name


def test_adapters_merge_switch_off_save_and_load(peft, tmp_path):
    base = hf.build(SEQUENCE, hf.tiny_config())
    with torch.no_grad():
        plain = base(**given()).logits
        model = adapted(peft, mf.accelerate(copy.deepcopy(base)))
        tuned = model(**given()).logits
        assert hf.relative(tuned, plain) > 1e-3
        with model.disable_adapter():
            assert hf.relative(model(**given()).logits, plain) <= 1e-5
        model.save_pretrained(tmp_path)
        again = peft.PeftModel.from_pretrained(mf.accelerate(copy.deepcopy(base)), tmp_path).eval()
        assert hf.relative(again(**given()).logits, tuned) <= 1e-6
        merged = model.merge_and_unload()
        assert mf.is_accelerated(merged)
        assert hf.relative(merged(**given()).logits, tuned) <= 1e-5
        assert hf.relative(mf.restore(merged)(**given()).logits, tuned) <= 1e-5


@pytest.mark.parametrize("module", ["head", "mlp_norm", "final_norm", "classifier", "mlp"])
def test_a_saved_module_steps_aside_with_its_adapter(peft, module):
    """PEFT trains a copy of such a module; within disable_adapter() the original must answer."""
    base = hf.build(SEQUENCE, hf.tiny_config())
    with torch.no_grad():
        plain = base(**given()).logits
        model = adapted(peft, mf.accelerate(base), target_modules=["Wqkv"], modules_to_save=[module])
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.mul_(1.5)
        tuned = model(**given()).logits
        assert hf.relative(tuned, plain) > 1e-3
        with model.disable_adapter():
            assert hf.relative(model(**given()).logits, plain) <= 1e-5
        mf.restore(model)
        assert hf.relative(model(**given()).logits, tuned) <= 1e-5
