"""Questions that stand between a client and its module, their answers, and what to do about them."""
