"""YAML in which a key given twice is an error, not the last one winning without a word."""

from __future__ import annotations

from typing import Any

import yaml


class KeysOnce(yaml.SafeLoader):
    """For ``yaml.load``; raises yaml.YAMLError naming the key and the line where its mapping begins."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [k.value for k, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"key {key!r} stands twice (line {node.start_mark.line + 1} on)")
        return super().construct_mapping(node, deep)
