"""Exact duplicates by hash, near-duplicates across sessions by MinHash and locality-sensitive hashing.

Broder 1997 (resemblance of documents by shingles); Lee et al. 2022 (deduplicating training data). Candidates come
from datasketch, and the true Jaccard similarity of their shingles decides.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from datasketch import MinHash, MinHashLSH
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from realm.cleaning.funnel import Outcome, keep
from realm.conversations.conversation import Conversation

SHINGLE = 5  # words
COMPARED = 6_000  # characters from the start: who opens alike for so long is a leak, whatever follows
PERMUTATIONS = 64
CLUSTER = "near_duplicates"  # in meta: the id that stands for the cluster
WORD = re.compile(r"\w+")


def content_digest(conversation: Conversation) -> bytes:
    """A hash of roles and texts, in order."""
    text = "\x00".join(f"{m.role}\x01{m.content}" for m in conversation.messages)
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()


def exact_duplicates(conversations: list[Conversation]) -> list[Outcome]:
    """The second of two conversations with the same roles and texts goes."""
    seen: set[bytes] = set()
    outcomes = []
    for conversation in conversations:
        digest = content_digest(conversation)
        outcomes.append(Outcome([], "exact duplicate") if digest in seen else keep(conversation))
        seen.add(digest)
    return outcomes


def shingles(conversation: Conversation) -> np.ndarray:
    """Sorted distinct 32-bit hashes, uint64, of the runs of 5 words at the conversation's beginning."""
    text = "\n".join(m.content for m in conversation.messages)[:COMPARED].lower()
    words = np.fromiter((zlib.crc32(w.encode()) for w in WORD.findall(text)), dtype=np.uint64)
    if not len(words):
        words = np.array([zlib.crc32(text.encode())], dtype=np.uint64)
    runs = max(1, len(words) - SHINGLE + 1)
    mixed = words[:runs].copy()
    with np.errstate(over="ignore"):
        for offset in range(1, min(SHINGLE, len(words))):
            mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + words[offset : offset + runs]
    return np.unique((mixed ^ (mixed >> np.uint64(32))) & np.uint64(0xFFFFFFFF))


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Jaccard: shared shingles over all shingles of both."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def similar_pairs(conversations: Sequence[Conversation], threshold: float) -> Iterator[tuple[int, int]]:
    """Index pairs whose similarity is at least ``threshold``, as far as the hashing finds candidates: enough of them
    to link whatever is linked by all of them. Of a large family each member is compared with few others.
    """
    # A lower threshold for candidates costs comparisons and saves pairs that 64 permutations would miss.
    bands = MinHashLSH(threshold=max(0.1, threshold - 0.2), num_perm=PERMUTATIONS).hashranges
    buckets: dict[tuple[int, bytes], _Bucket] = defaultdict(dict)
    groups = _Groups(len(conversations))
    sets = [shingles(c) for c in conversations]
    first_with: dict[bytes, int] = {}
    for i, own in enumerate(sets):
        twin = first_with.setdefault(own.tobytes(), i)
        if twin != i:
            yield twin, i  # whatever is like one is like the other
            continue
        sketch = MinHash(num_perm=PERMUTATIONS, hashfunc=int)
        sketch.update_batch(own)
        met = [buckets[start, sketch.hashvalues[start:end].tobytes()] for start, end in bands]
        for bucket in met:
            groups.bring_up_to_date(bucket)
        for group in sorted({group for bucket in met for group in bucket}):
            alike = _first_alike(own, [bucket[group] for bucket in met if group in bucket], sets, threshold)
            if alike is not None:
                groups.link(alike, i)
                yield alike, i
        for bucket in met:
            bucket.setdefault(groups.of(i), []).append(i)


_Bucket = dict[int, list[int]]  # group -> its members that share one band of their sketches


def _first_alike(own: np.ndarray, candidates: list[list[int]], sets: list[np.ndarray], threshold: float) -> int | None:
    """The first of a group's candidates that is similar enough; in a family that is one of the first few."""
    tried: set[int] = set()
    for j in (j for members in candidates for j in members):
        if j in tried:
            continue
        tried.add(j)
        shorter, longer = sorted((len(own), len(sets[j])))
        if shorter >= threshold * longer and similarity(own, sets[j]) >= threshold:
            return j
    return None


class _Groups:
    """Who is linked so far, by a number for each group; a merged group keeps the lower one."""

    def __init__(self, size: int):
        self._above = list(range(size))

    def of(self, i: int) -> int:
        while self._above[i] != i:
            self._above[i] = self._above[self._above[i]]
            i = self._above[i]
        return i

    def link(self, i: int, j: int) -> None:
        low, high = sorted((self.of(i), self.of(j)))
        self._above[high] = low

    def bring_up_to_date(self, bucket: _Bucket) -> None:
        """Members under the number of the group that theirs was merged into, the shorter list into the longer."""
        for old in [group for group in bucket if self._above[group] != group]:
            moved, now = bucket.pop(old), self.of(old)
            kept = bucket.get(now, [])
            longer, shorter = (kept, moved) if len(kept) >= len(moved) else (moved, kept)
            longer.extend(shorter)
            bucket[now] = longer


def near_duplicate_clusters(conversations: Sequence[Conversation], threshold: float) -> list[list[int]]:
    """Indices of conversations linked by similar pairs, clusters of two and more, largest first."""
    return [c for c in linked(len(conversations), list(similar_pairs(conversations, threshold))) if len(c) > 1]


def linked(size: int, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Connected components over ``size`` items, largest first."""
    rows, columns = np.array(pairs, dtype=int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(size, size))
    members: dict[int, list[int]] = defaultdict(list)
    for i, label in enumerate(connected_components(graph, directed=False)[1]):
        members[int(label)].append(i)
    return sorted(members.values(), key=lambda m: (-len(m), m[0]))


def _unmarked(conversation: Conversation) -> Conversation:
    """A mark that a file brought, of our own or of others, names no cluster of this run."""
    if CLUSTER not in conversation.meta:
        return conversation
    return replace(conversation, meta={k: v for k, v in conversation.meta.items() if k != CLUSTER})


def near_duplicates(conversations: list[Conversation], threshold: float, drop: bool) -> list[Outcome]:
    """Every member of a cluster carries in ``meta`` the id of its longest one; with ``drop`` only that one stays.
    Clusters are counted by their size."""
    outcomes = [keep(_unmarked(c)) for c in conversations]
    for cluster in near_duplicate_clusters(conversations, threshold):
        longest = max(cluster, key=lambda i: (sum(len(m.content) for m in conversations[i].messages), -i))
        for i in cluster:
            meta = {**conversations[i].meta, CLUSTER: conversations[longest].id}
            if i == longest:
                reason = "stands for its cluster"
            else:
                reason = "near-duplicate of a longer one" if drop else "near-duplicate, marked"
            kept = [] if drop and i != longest else [replace(conversations[i], meta=meta)]
            outcomes[i] = Outcome(kept, reason, Counter({f"clusters of {len(cluster)}": int(i == longest)}))
    return outcomes
