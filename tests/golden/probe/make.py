"""Writes sklearn.json beside this script: logistic regressions, scores and means that scikit-learn and NumPy compute.

    pip install scikit-learn && python tests/golden/probe/make.py
"""

import json
import pathlib

import numpy as np
import sklearn
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import StandardScaler

rng = np.random.default_rng(5)


def data(n, d, classes, separation):
    y = np.arange(n) % classes
    mix = rng.normal(size=(d, d)) * np.linspace(0.2, 3.0, d)
    x = rng.normal(size=(n, d)) @ mix + separation * rng.normal(size=(classes, d))[y] + 0.5
    return np.round(x, 3), y


sets = {
    "two": data(40, 4, 2, 1.5),
    "three": data(45, 4, 3, 1.5),
    "separable": data(24, 6, 2, 9.0),
    "wide": data(20, 30, 2, 1.0),
}


def fitted(name, c, standardize):
    x, y = sets[name]
    scaler = StandardScaler(with_mean=standardize, with_std=standardize).fit(x)
    model = LogisticRegression(C=c, tol=1e-12, max_iter=200_000).fit(scaler.transform(x), y)
    # scikit-learn stops early: finish with Newton's method on the same objective, starting there.
    weights, bias = model.coef_, model.intercept_
    if len(weights) == 1:
        weights, bias = newton(scaler.transform(x), y, weights[0], bias[0], c)
    predicted, z = model.predict(scaler.transform(x)), scaler.transform(x) @ weights.T + bias
    if standardize:
        weights = weights / scaler.scale_
        bias = bias - weights @ scaler.mean_
    if z.shape[1] == 1:
        f1, auroc = f1_score(y, predicted), roc_auc_score(y, z[:, 0])
    else:
        p = np.exp(z - z.max(1, keepdims=True))
        f1 = f1_score(y, predicted, average="macro")
        auroc = roc_auc_score(y, p / p.sum(1, keepdims=True), multi_class="ovr", average="macro")
    return {
        "data": name,
        "classes": len(set(y.tolist())),
        "c": c,
        "standardize": standardize,
        "coefficients": weights.tolist(),
        "intercepts": bias.tolist(),
        "scores": [accuracy_score(y, predicted), f1, auroc],
    }


def newton(x, y, w, b, c):
    theta = np.append(w, b)
    ones = np.hstack([x, np.ones((len(x), 1))])
    penalty = np.diag(np.append(np.ones(len(w)), 0.0)) / c
    for _ in range(50):
        p = 1 / (1 + np.exp(-(ones @ theta)))
        gradient = ones.T @ (p - y) + penalty @ theta
        theta = theta - np.linalg.solve(ones.T @ (ones * (p * (1 - p))[:, None]) + penalty, gradient)
    assert np.abs(theta[:-1] - w).max() < 1e-4, "Newton's answer is scikit-learn's"
    return theta[None, :-1], theta[-1:]


def means(name):
    x, y = sets[name]
    by_class = np.stack([x[y == c].mean(0) for c in range(y.max() + 1)])
    difference = by_class[1] - by_class[0] if len(by_class) == 2 else by_class - by_class.mean(0)
    return {
        "x": x.tolist(),
        "y": y.tolist(),
        "difference_of_means": difference.tolist(),
        "nearest_mean": NearestCentroid().fit(x, y).predict(x).tolist(),
    }


cases = [
    fitted("two", 1.0, False),
    fitted("two", 0.05, True),
    fitted("three", 1.0, False),
    fitted("three", 10.0, True),
    fitted("separable", 10.0, False),
    fitted("wide", 1.0, True),
]
golden = {"scikit_learn": sklearn.__version__, "data": {name: means(name) for name in sets}, "cases": cases}
path = pathlib.Path(__file__).with_name("sklearn.json")
path.write_text(json.dumps(golden) + "\n")
print(path.stat().st_size, "bytes;", *(round(case["scores"][0], 3) for case in cases))
