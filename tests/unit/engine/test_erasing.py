"""What stays of a customer in memory once they are erased: nothing that opens what was sealed for them."""

from __future__ import annotations

from riskgate_server.crypto.seal import Sealer
from riskgate_server.stores.memory import MemoryStore, MemoryVault
from tests import factories as f

ADA = (f.TENANT, f.CUSTOMER)
BO = (f.TENANT, "bo")


def test_no_key_of_a_customer_stays_in_memory_after_their_erasure() -> None:
    sealer = Sealer()
    pipeline = f.make_pipeline(MemoryStore(), vault=MemoryVault(), sealer=sealer)
    pipeline.run([f.open_line(), f.open_line("open-bo", customer_id="bo")])
    pipeline.run([f.close()])
    assert {*pipeline._customers.kept} == {ADA, BO}
    assert sealer._cipher.cache_info().currsize == 2

    pipeline.run([f.erase(), f.check("t-1", customer_id="bo")])

    assert {*pipeline._customers.kept} == {BO}
    assert sealer._cipher.cache_info().currsize == 0


def test_who_is_erased_by_a_process_that_had_not_met_them_leaves_no_key_there() -> None:
    store, vault, sealer = MemoryStore(), MemoryVault(), Sealer()
    f.make_pipeline(store, vault=vault).run([f.open_line(), f.close()])

    f.make_pipeline(store, vault=vault, sealer=sealer).run([f.erase()])

    assert sealer._cipher.cache_info().currsize == 0


def test_a_command_before_the_key_is_destroyed_brings_it_not_back() -> None:
    sealer = Sealer()
    pipeline = f.make_pipeline(MemoryStore(), vault=MemoryVault(), sealer=sealer)
    pipeline.run([f.open_line()])
    pipeline.run([f.close()])
    pipeline.run([f.erase()])

    for again in (f.check("t-1"), f.erase()):
        pipeline.run([again])

    assert not pipeline._customers.kept
    assert sealer._cipher.cache_info().currsize == 0
