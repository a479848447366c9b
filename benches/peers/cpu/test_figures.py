"""What a run's tables and the comparison of results compute."""
import sys
import unittest

sys.dont_write_bytecode = True

import agree
import figures


def result(case, peer, us, threads=1, **more):
    entry = {
        "case": case, "threads": threads, "peer": peer, "floor_bytes": 2 << 20, "tensor_bytes": 1 << 20,
        "min_us": us, "median_us": us, "left_out": None, "disagrees": None,
    }
    return entry | more


FORWARD, BACKWARD = "layer_norm/fwd/f32/rows/512x512", "layer_norm/bwd/f32/rows/512x512"
RUN = {
    "machine": {"processor": "one"},
    "peers": [
        {"name": "warpnorm", "version": "abc", "missing": None},
        {"name": "jax", "version": None, "missing": "no wheel"},
    ],
    "results": [
        result(FORWARD, "warpnorm", [12.0, 9.0, 10.0]),
        result(FORWARD, "copy", [7.0, 9.0]),
        result(FORWARD, "torch", [25.0, 20.0, 14.0]),
        result(FORWARD, "onednn", [15.0]),
        result(FORWARD, "candle", [1.0], disagrees="y has 0 instead of 1"),
        result(FORWARD, "burn", [2.0], left_out="the worker ended in a later round"),
        result(BACKWARD, "warpnorm", [30.0]),
        result(BACKWARD, "torch", [15.0]),
        result(BACKWARD, "onnxruntime", [], left_out="no backward pass"),
        result(FORWARD, "warpnorm", [5.0], threads=2),
    ],
}


class Figures(unittest.TestCase):
    def test_the_best_peer_has_the_least_median_among_those_that_agree(self):
        row = figures.rows(RUN)[0]
        self.assertEqual((row.us, row.best, row.ratio, row.share), (10.0, ("onednn", 15.0), 1.5, 0.8))
        self.assertEqual((row.direction, row.size_class), ("forward", "medium"))

    def test_a_case_without_a_peer_has_no_ratio(self):
        row = figures.rows(RUN)[2]
        self.assertEqual((row.threads, row.best, row.ratio, row.share), (2, None, None, None))

    def test_the_summary_is_by_threads_passes_and_sizes(self):
        lines = {line[:3]: line[3:] for line in figures.summary(figures.rows(RUN))}
        cases, slower, quartile, mean, least, share, least_share = lines[1, "all", "all"]
        self.assertEqual((cases, slower, quartile, least, share, least_share), (2, 1, 0.75, 0.5, 0.8, 0.8))
        self.assertAlmostEqual(mean, 0.75**0.5)
        self.assertEqual(lines[1, "backward", "medium"], (1, 1, 0.5, 0.5, 0.5, None, None))
        self.assertNotIn((2, "all", "all"), lines)

    def test_the_lower_quartile_lies_between_values(self):
        self.assertEqual(figures.lower_quartile([3.0]), 3.0)
        self.assertEqual(figures.lower_quartile([4.0, 1.0, 3.0, 2.0, 5.0]), 2.0)
        self.assertEqual(figures.lower_quartile([1.0, 2.0, 3.0, 4.0]), 1.75)

    def test_size_classes_are_of_one_tensor(self):
        sizes = [(64 << 10) - 1, 64 << 10, (1 << 20) - 1, 1 << 20, (8 << 20) - 1, 8 << 20, (32 << 20) - 1, 32 << 20]
        names = ["tiny", "small", "small", "medium", "medium", "large", "large", "huge"]
        self.assertEqual([figures.size_class(size) for size in sizes], names)

    def test_the_page_names_missing_peers_what_is_left_out_and_every_case(self):
        lines = figures.page(RUN).splitlines()
        for line in [
            "- processor: one",
            "- warpnorm abc",
            "- **missing: jax** (no wheel)",
            "- candle, cases left out: 1 (computes something else)",
            "- onnxruntime, cases left out: 1 (no backward pass)",
            "| 1 | all | all | 2 | 1 | 0.75 | 0.87 | 0.50 | 80% | 80% |",
            f"| {FORWARD} | 1 | 10.0 | onednn | 15.0 | 1.50 | 80% |",
            f"| {FORWARD} | 2 | 5.0 | none | - | - | - |",
        ]:
            self.assertIn(line, lines)


def digest(samples, mean_abs=1.0, count=64):
    return {"len": count, "mean_abs": mean_abs, "samples": samples}


class Agreement(unittest.TestCase):
    def differ(self, own, other, dtype="f32"):
        return agree.disagreement({"y": own}, {"y": other}, dtype, ["y"])

    def test_rounding_is_no_disagreement(self):
        self.assertIsNone(self.differ(digest([1.0, -2.0]), digest([1.0005, -2.0015], 1.0005)))
        self.assertIsNone(self.differ(digest([1.0, 0.0]), digest([1.01, 0.015]), "f16"))

    def test_another_value_count_magnitude_or_result_is(self):
        own = digest([1.0, -2.0])
        for other in [
            digest([1.0, 2.0]), digest([1.0, -2.0], 1.1), digest([1.0, -2.0], count=63), digest([1.0, None]),
            digest([1.0, -2.0], None),
        ]:
            self.assertIsNotNone(self.differ(own, other))
        self.assertEqual(agree.disagreement({"y": own}, {}, "f32", ["y"]), "no y")

    def test_results_that_one_side_lacks_count_only_where_they_are_wanted(self):
        own = {"y": digest([1.0]), "dbias": digest([1.0])}
        self.assertIsNone(agree.disagreement(own, {"y": digest([1.0])}, "f32", ["y"]))


if __name__ == "__main__":
    unittest.main()
