"""Groups the pictures of an instance by their vectors, and draws a sheet of each group. To read and change, cell by
cell in an editor that knows `# %%`, or to run:

    python look_at_vectors.py featd.toml sheets

Needs scikit-learn (pip install scikit-learn) beside featd.
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.cluster import MiniBatchKMeans

import featd
from featd.search.sheet import Tile, draw

config, out = sys.argv[1], Path(sys.argv[2])
GROUPS = 8

# %% Read the vectors. Memory for all of them is needed here; `features.batches()` gives them piece by piece.

with featd.open(config) as features:
    batches = list(features.batches())
vectors = np.concatenate([batch.vectors for batch in batches])
files = [Path(root, path) for batch in batches for root, path in zip(batch.roots, batch.paths, strict=True)]
print(f"{len(vectors)} vectors of {vectors.shape[1]} numbers")

# %% Group them by direction: vectors of length 1, so that bright and dark pictures of one thing are near each other.

directions = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
groups = MiniBatchKMeans(min(GROUPS, len(vectors)), n_init=3, random_state=0).fit(directions)

# %% In each group, the picture that is nearest to the middle, and the next ones. Look at the sheet.

rows = []
for group, middle in enumerate(groups.cluster_centers_):
    members = np.flatnonzero(groups.labels_ == group)
    distances = np.linalg.norm(directions[members] - middle, axis=1)
    nearest = members[np.argsort(distances)]
    tiles = [Tile(files[at], files[at].name, f"group {group}: {len(members)} pictures") for at in nearest[:8]]
    if tiles:
        rows.append((tiles[0], tiles[1:]))

out.mkdir(parents=True, exist_ok=True)
draw(out / "groups.png", "Groups of pictures", f"{len(vectors)} pictures in {len(rows)} groups", rows)
print(f"look at {out / 'groups.png'}")

# %% The pictures that are least like any other one: often broken, blank, or in the wrong folder.

with featd.searcher(config) as searcher:
    far = []
    for batch in batches:
        for own, found in zip(batch.ids, searcher.nearest(batch.vectors, 2), strict=True):
            others = [one.distance for one in found if one.image.image_id != own]
            far.append(min(others, default=0.0))
order = np.argsort(far)[::-1][:12]
tiles = [Tile(files[at], f"{far[at]:.3g}", files[at].name) for at in order]
summary = "The distance of each from the picture that is nearest to it"
draw(out / "unlike.png", "Unlike all others", summary, [(tiles[0], tiles[1:])])
print(f"look at {out / 'unlike.png'}")
