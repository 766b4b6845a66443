"""Collectives are read from a compiled program's text, asynchronous ones as well."""

import types

from t6jax.parallel.collectives import Collective, collectives

TEXT = """
%body.1 (arg: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %all-gather-start.1 = (bf16[4,4]{1,0}, bf16[8,4]{1,0}) all-gather-start(%x.1), channel_id=1, dimensions={0}
  %all-gather-done.1 = bf16[8,4]{1,0} all-gather-done(%all-gather-start.1)
}

ENTRY %main.1 (p: f32[8,4]) -> f32[8,4] {
  %while.1 = (s32[], f32[8,4]) while(%tuple.1), body=%body.1, backend_config={"known_trip_count":{"n":"6"}}
  %all-reduce.1 = f32[3]{0} all-reduce(%p.1), to_apply=%add.1
  %all-reduce-start.1 = (f32[8,4]{1,0}, f32[2]{0}, f32[8,4]{1,0}, f32[2]{0}) all-reduce-start(%p.1, %q.1), to_apply=%add.1
  %all-reduce-start.2 = (f32[5]{0}, f32[2]{0}) all-reduce-start(%p.1, %q.1), to_apply=%add.1
  %collective-permute-start.1 = (f32[7]{0}, f32[7]{0}, u32[], u32[]) collective-permute-start(%p.1), channel_id=3
}
"""  # noqa: E501


def test_results_are_counted_once_and_loops_as_often_as_they_run():
    found = collectives(types.SimpleNamespace(as_text=lambda: TEXT))
    assert found == [
        Collective("all-gather", (("bf16", (8, 4)),), 6),
        Collective("all-reduce", (("f32", (3,)),), 1),
        Collective("all-reduce", (("f32", (8, 4)), ("f32", (2,))), 1),
        Collective("all-reduce", (("f32", (5,)), ("f32", (2,))), 1),
        Collective("collective-permute", (("f32", (7,)),), 1),
    ]
    assert found[0].bytes == 64
