import random

import pytest
import torch

from sightloom.model.chat import Document, Encoder
from sightloom.model.heads import ContrastiveHeads, TrainableVLM
from sightloom.model.load import VLM
from sightloom.model.packs import Branch, Pack, pack_branches, pack_documents
from sightloom.model.positions import rope_positions

from .conftest import conversation, picture

ATOL = 1e-5  # fp32, 3 + 4 layers; worst measured 5e-7


@pytest.fixture(scope="module")
def trainable(nano: VLM) -> TrainableVLM:
    return TrainableVLM(nano.model, ContrastiveHeads(128, "siglip"))


def packed(trainable: TrainableVLM, documents: list[Document]) -> Pack:
    return pack_documents(documents, trainable.image_token_id, trainable.merge_size)


def test_rope_positions_equal_transformers_own(nano: VLM, documents: list[Document]) -> None:
    for document in documents:
        image = (document.input_ids == nano.model.config.image_token_id).int()
        theirs, _ = nano.model.model.get_rope_index(document.input_ids[None], image[None], document.image_grid_thw)
        assert torch.equal(rope_positions(document, nano.model.config.image_token_id, 2), theirs[:, 0])


def test_packed_equals_separate_in_values_and_gradients(trainable: TrainableVLM, documents: list[Document]) -> None:
    def gradients() -> dict[str, torch.Tensor]:
        found = {name: p.grad.clone() for name, p in trainable.named_parameters() if p.grad is not None}
        trainable.zero_grad()
        return found

    pack = packed(trainable, documents)
    together = trainable(pack, ("logprobs", "entropy"))
    (-together.logprobs.sum() + together.entropy.sum()).backward()
    grads = gradients()
    for index, document in enumerate(documents):
        alone = trainable(packed(trainable, [document]), ("logprobs", "entropy"))
        own = pack.label_documents == index
        torch.testing.assert_close(alone.logprobs, together.logprobs[own], atol=ATOL, rtol=0)
        torch.testing.assert_close(alone.entropy, together.entropy[own], atol=ATOL, rtol=0)
        (-alone.logprobs.sum() + alone.entropy.sum()).backward()
    for name, grad in gradients().items():
        torch.testing.assert_close(grad, grads[name], atol=2e-3, rtol=1e-4, msg=name)  # sums over some 600 tokens


def test_log_probabilities_equal_the_plain_models(
    nano: VLM, trainable: TrainableVLM, documents: list[Document]
) -> None:
    pack = packed(trainable, documents)
    ours = trainable(pack).logprobs
    configs = (nano.model.config, nano.model.config.text_config, nano.model.config.vision_config)
    try:
        for config in configs:
            config._attn_implementation = "eager"
        for index, document in enumerate(documents):
            logits = nano.model(
                input_ids=document.input_ids[None],
                attention_mask=torch.ones(1, len(document), dtype=torch.int64),
                mm_token_type_ids=(document.input_ids == nano.model.config.image_token_id).int()[None],
                pixel_values=document.pixel_values,
                image_grid_thw=document.image_grid_thw,
            ).logits[0]
            theirs = logits[:-1].log_softmax(-1).gather(1, document.input_ids[1:, None])[:, 0][document.loss_mask[1:]]
            torch.testing.assert_close(ours[pack.label_documents == index], theirs, atol=ATOL, rtol=0)
    finally:
        for config in configs:
            config._attn_implementation = "sightloom_flash"


def test_changing_one_document_leaves_the_others_alone(
    trainable: TrainableVLM, encoder: Encoder, documents: list[Document]
) -> None:
    other = encoder.encode(conversation(random.Random(77)), picture(77, (32, 64)))
    before, after = packed(trainable, documents), packed(trainable, [other, *documents[1:]])
    with torch.no_grad():
        kept = trainable(before).logprobs[before.label_documents > 0]
        torch.testing.assert_close(trainable(after).logprobs[after.label_documents > 0], kept, atol=ATOL, rtol=0)


def test_labels_are_the_masked_tokens_and_never_a_documents_first(documents: list[Document]) -> None:
    everything = Document(documents[3].input_ids, torch.ones_like(documents[3].loss_mask))
    pack = pack_documents([documents[0], everything], 5, 2)
    assert pack.num_labels == int(documents[0].loss_mask.sum()) + len(everything) - 1
    assert torch.equal(pack.input_ids[0, pack.label_positions + 1], pack.targets)
    assert (pack.position_ids[:, 0, pack.boundaries[:-1].long()] == 0).all()


def test_features_are_unit_vectors_of_each_image_and_each_caption(trainable, encoder, documents) -> None:
    captions = [encoder.caption("a red circle"), encoder.caption("blue")]
    with torch.no_grad():
        out = trainable(packed(trainable, [documents[0], *captions, documents[1]]), ("contrastive",))
        alone = trainable(packed(trainable, captions[1:]), ("contrastive",))
    assert out.logprobs is None and out.image_features.shape == (2, 128) and out.text_features.shape == (2, 128)
    torch.testing.assert_close(out.text_features.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(out.text_features[1], alone.text_features[0], atol=ATOL, rtol=0)
    assert alone.image_features is None


def test_temperature_divides_the_logits(trainable: TrainableVLM, documents: list[Document]) -> None:
    pack = packed(trainable, documents[:1])
    with torch.no_grad():
        cold, warm = (trainable(pack, ("entropy",), temperature).entropy.mean() for temperature in (0.1, 1.0))
    assert cold < warm


def test_the_patch_embedding_as_a_product_equals_its_convolution(nano: VLM, documents: list[Document]) -> None:
    embedding, pixels = nano.model.model.visual.patch_embed, documents[0].pixel_values
    with torch.no_grad():
        torch.testing.assert_close(embedding(pixels), type(embedding).forward(embedding, pixels), atol=1e-5, rtol=0)


def test_a_blank_document_adds_no_label_and_no_gradient(trainable, encoder, documents) -> None:
    with_blank = packed(trainable, [documents[3], encoder.blank()])
    out = trainable(with_blank)
    out.logprobs.sum().backward()
    assert with_blank.num_labels == packed(trainable, [documents[3]]).num_labels
    visual = [p.grad for name, p in trainable.named_parameters() if "visual" in name]
    assert all(grad is not None and not grad.any() for grad in visual)
    trainable.zero_grad()


def test_an_empty_pack_is_refused() -> None:
    with pytest.raises(ValueError, match="needs documents"):
        pack_documents([], 5, 2)


def test_a_prompt_that_is_laid_once_gives_its_continuations_what_a_copy_each_would(
    trainable: TrainableVLM, encoder: Encoder, documents: list[Document]
) -> None:
    generator = torch.Generator().manual_seed(0)
    prompts = [encoder.prompt(conversation(random.Random(seed)), picture(seed), thinking=True) for seed in (1, 2)]
    prompts.append(Document(documents[0].input_ids[:3], torch.zeros(3, dtype=torch.bool)))  # without a picture
    trees: list[tuple[Document, list[Branch]]] = []
    for prompt, lengths in zip(prompts, ([5, 1, 30], [4, 4], [7]), strict=True):
        branches = []
        for length in lengths:
            ids = torch.randint(20, 300, (length,), generator=generator)
            branches.append(Branch(ids, torch.rand(length, generator=generator) < 0.8))
        trees.append((prompt, branches))
    copies = [
        Document(
            torch.cat([prompt.input_ids, branch.input_ids]),
            torch.cat([torch.zeros(len(prompt), dtype=torch.bool), branch.loss_mask]),
            prompt.pixel_values,
            prompt.image_grid_thw,
        )
        for prompt, branches in trees
        for branch in branches
    ]
    shared = pack_branches(trees, trainable.image_token_id, trainable.merge_size)
    apart = packed(trainable, copies)
    assert shared.num_tokens < apart.num_tokens and torch.equal(shared.lengths, apart.lengths)
    assert torch.equal(shared.targets, apart.targets) and torch.equal(shared.label_documents, apart.label_documents)
    found = []
    for pack in (shared, apart):
        trainable.zero_grad()
        out = trainable(pack, ("logprobs", "entropy"))
        (-out.logprobs.sum() + out.entropy.sum()).backward()
        grads = {name: p.grad.clone() for name, p in trainable.named_parameters() if p.grad is not None}
        found.append((out.logprobs.detach(), out.entropy.detach(), grads))
    trainable.zero_grad()
    (logprobs, entropy, grads), (wanted_logprobs, wanted_entropy, wanted) = found
    torch.testing.assert_close(logprobs, wanted_logprobs, atol=ATOL, rtol=0)
    torch.testing.assert_close(entropy, wanted_entropy, atol=ATOL, rtol=0)
    for name, grad in wanted.items():
        torch.testing.assert_close(grads[name], grad, atol=2e-3, rtol=1e-4, msg=name)  # sums over some 600 tokens


def test_a_tree_without_a_continuation_is_refused() -> None:
    prompt = Document(torch.ones(3, dtype=torch.int64), torch.zeros(3, dtype=torch.bool))
    nothing = Branch(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))
    for trees in ([], [(prompt, [])], [(prompt, [nothing])]):
        with pytest.raises(ValueError, match="continuation"):
            pack_branches(trees, 5, 2)
