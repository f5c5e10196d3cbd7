"""Batches that are made ahead of time are those that are asked for."""

import threading

import pytest

from gralora_diffusion.training.prefetch import Prefetcher


def test_whatever_is_asked_for_is_given_and_the_next_one_is_made_in_a_thread():
    made = []

    def make(index: int):
        made.append((index, threading.current_thread() is threading.main_thread()))
        return index * 10

    prefetcher = Prefetcher(make, stride=2)
    assert [prefetcher.get(index) for index in (0, 2, 4, 9, 11)] == [0, 20, 40, 90, 110]
    prefetcher.thread.shutdown()
    assert [index for index, here in made if here] == [0, 9]
    assert [index for index, here in made if not here] == [2, 4, 6, 11, 13]


def test_an_error_comes_with_the_batch_that_has_it():
    def make(index: int):
        if index == 1:
            raise ValueError("damaged")
        return index

    prefetcher = Prefetcher(make)
    assert prefetcher.get(0) == 0
    with pytest.raises(ValueError, match="damaged"):
        prefetcher.get(1)
    assert prefetcher.get(2) == 2
