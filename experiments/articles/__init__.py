"""Four articles on the backward pass of a convolution, each as a program that asserts what the article claims.

    derivation   G. Gwardys, from intuition to derivation
    code         M. Agarwal, intuition and code
    general      a question and its answer: depth, several filters, and what the answer leaves out
    by_hand      A. Saraswat, the backward pass of a whole CNN
    claims       what they share: a claim, how it is tried, and how many fail

`python -m experiments.articles.<name>` prints one line per claim and exits with 1 if one fails.
"""
