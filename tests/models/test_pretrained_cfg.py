from __future__ import annotations

from ftcli.models.pretrained_cfg import list_downloadable_weights


def test_list_downloadable_weights_returns_published_metrics() -> None:
    first, second = list_downloadable_weights("resnet50")
    assert (first.name, first.accuracy, first.default) == ("IMAGENET1K_V1", 76.13, False)
    assert (second.name, second.accuracy, second.default) == ("IMAGENET1K_V2", 80.858, True)
    assert second.parameters == 25_557_032
    assert second.url == "https://download.pytorch.org/models/resnet50-11ad3fa6.pth"


def test_list_downloadable_weights_without_classifier_has_no_accuracy() -> None:
    assert {entry.name: entry.accuracy for entry in list_downloadable_weights("vgg16")} == {
        "IMAGENET1K_V1": 71.592,
        "IMAGENET1K_FEATURES": None,
    }


def test_list_downloadable_weights_lists_timm_tags() -> None:
    entries = list_downloadable_weights("timm/vit_small_patch16_224")
    assert entries[0].name == "augreg_in21k_ft_in1k"
    assert [entry.default for entry in entries] == [True] + [False] * (len(entries) - 1)
    assert entries[0].url == "https://huggingface.co/timm/vit_small_patch16_224.augreg_in21k_ft_in1k"
