"""What humans ask about: opening turns embedded, clustered, each cluster named by its own terms, drawn in a plane."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.manifold import TSNE

from realm.core.errors import TooFewError

TERMS = 3


def topic_map(texts: Sequence[str], embeddings: np.ndarray, topics: int, seed: int) -> pd.DataFrame:
    """One row a text: x, y, topic.

    ``embeddings``: (n, d), normalized, one a text. k-means on them; a topic's name is its 3 terms of highest
    class-based TF-IDF (Grootendorst 2022, BERTopic); the plane is t-SNE's (van der Maaten and Hinton 2008), where
    near points are alike and distances between clusters mean little. Raises TooFewError for fewer texts than topics.
    """
    if len(texts) < topics:
        raise TooFewError(f"{topics} topics of {len(texts)} texts: lower data_inspection.topics or raise topic_turns")
    labels = KMeans(topics, n_init=4, random_state=seed).fit_predict(embeddings)
    names = topic_terms(texts, labels)
    spread = min(30.0, (len(texts) - 1) / 3)
    plane = TSNE(perplexity=spread, init="pca", random_state=seed).fit_transform(embeddings)
    return pd.DataFrame({"x": plane[:, 0], "y": plane[:, 1], "topic": [names[label] for label in labels]})


def topic_terms(texts: Sequence[str], labels: np.ndarray) -> dict[int, str]:
    """The terms that set each cluster apart: frequency in the cluster times log(1 + words a cluster / frequency)."""
    documents = [" ".join(t for t, own in zip(texts, labels, strict=True) if own == k) for k in range(labels.max() + 1)]
    # Two letters at least, no digits: numbers name no topic.
    counter = CountVectorizer(stop_words="english", token_pattern=r"(?u)\b[^\W\d_]{2,}\b")
    if not any(map(counter.build_analyzer(), documents)):
        return {k: f"{k + 1} (no words)" for k in range(len(documents))}
    counts = counter.fit_transform(documents).toarray()
    per_cluster = counts.sum(axis=1, keepdims=True)
    weights = counts / np.maximum(per_cluster, 1) * np.log(1 + per_cluster.mean() / counts.sum(axis=0))
    terms = counter.get_feature_names_out()
    return {
        k: f"{k + 1} " + ", ".join(terms[i] for i in np.argsort(-row, kind="stable")[:TERMS] if row[i] > 0)
        for k, row in enumerate(weights)
    }
