from tests.loaded import loaded_by


def test_router_builders_and_release_manager_load_no_torch() -> None:
    """A process of a cluster that only routes, builds apps or watches the ledger starts in 2 s, not in 8."""
    modules = "sightloom.serving.builders, sightloom.serving.router, sightloom.promotion.manager"
    assert loaded_by(modules, {"torch", "open_clip", "transformers"}) == []
