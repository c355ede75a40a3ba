from stapsrv.farm.worker import WorkerOptions


def test_worker_offers_all_that_is_installed_unless_told_otherwise():
    assert WorkerOptions(scheduler="tcp://127.0.0.1:8786", environ={}).releases == ()
