from tests.loaded import loaded_by


def test_the_driver_of_a_curation_holds_no_torch() -> None:
    modules = "sightloom.data.curation, sightloom.data.steps, sightloom.data.preview"
    assert loaded_by(modules, {"torch", "open_clip", "transformers"}) == []
