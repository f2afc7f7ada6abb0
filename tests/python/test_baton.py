"""The Python package on a small trained model of checkpoints/; scripts/check-python installs it and runs this."""
import asyncio
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import numpy as np

import baton

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MODEL = ROOT / "checkpoints" / "dense.gguf"
PROMPT = "The package manager"


def windows(engine):
    """A plan of windows, small enough to matter in a few hundred tokens."""
    model = engine.info["model"]
    return baton.Plan.from_json(json.dumps({
        "format": "baton-plan", "version": 1,
        "model": {"architecture": model["architecture"], "layers": model["layers"]},
        "budget": {"tokens": 64, "sink": 4, "recent": 16}, "scope": "all", "pool": "sum", "unit": "token",
        "prefill": "dense", "layers": [{"window": {"sink": 4, "recent": 60}}] * model["layers"]}))


class Package(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.engine = baton.Engine(MODEL, threads=2)
        cls.tokens = cls.engine.tokenize(PROMPT + " of this system installs what a program needs. " * 30)

    def test_stream_is_the_whole_answer_in_pieces(self):
        whole = self.engine.generate(PROMPT, max_tokens=24, ignore_end=True)
        stream = self.engine.stream(PROMPT, max_tokens=24, ignore_end=True)
        pieces = list(stream)
        self.assertGreater(len(pieces), 4)
        self.assertEqual("".join(pieces), whole.text)
        self.assertEqual(stream.result.stats["logits_hash"], whole.stats["logits_hash"])
        self.assertEqual(len(whole.tokens), 24)
        self.assertEqual(whole.stop, "length")

    def test_a_batch_and_threads_have_the_answers_of_each_alone(self):
        prompts = [f"{PROMPT} number {i} " * (i + 1) for i in range(6)]
        options = dict(max_tokens=12, ignore_end=True, temperature=0.8, seed=3)
        alone = [self.engine.generate(p, **options) for p in prompts]
        together = self.engine.generate(prompts, **options)
        threaded = [None] * len(prompts)

        def work(i):
            threaded[i] = self.engine.generate(prompts[i], **options)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        for a, b, c in zip(alone, together, threaded):
            self.assertEqual(a.tokens, b.tokens)
            self.assertEqual(a.tokens, c.tokens)
            self.assertEqual(a.stats["logits_hash"], c.stats["logits_hash"])
        self.assertEqual(self.engine.held_bytes, 0)

    def test_async_iteration(self):
        async def read(prompt):
            return "".join([piece async for piece in self.engine.astream(prompt, max_tokens=8, ignore_end=True)])

        async def both():
            return await asyncio.gather(read(PROMPT), read("Another text"))

        first, second = asyncio.run(both())
        self.assertEqual(first, self.engine.generate(PROMPT, max_tokens=8, ignore_end=True).text)
        self.assertEqual(second, self.engine.generate("Another text", max_tokens=8, ignore_end=True).text)

    def test_closing_a_stream_frees_its_cache(self):
        with self.engine.stream(PROMPT, max_tokens=500, ignore_end=True) as stream:
            next(stream)
            self.assertGreater(self.engine.held_bytes, 0)
        self.assertEqual(stream.result.stop, "cancelled")
        self.assertEqual(self.engine.held_bytes, 0)

    def test_scores_are_logits_of_the_same_tokens(self):
        tokens = self.tokens[:80]
        scores = self.engine.score(tokens)
        logits = self.engine.logits(tokens)
        self.assertEqual(scores.shape, (79,))
        self.assertEqual(logits.shape, (80, self.engine.info["vocab"]))
        self.assertEqual(logits.dtype, np.float32)
        rows = logits[:-1].astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        expected = rows[np.arange(79), tokens[1:]] - np.log(np.exp(rows).sum(axis=1))
        # Prompts and decode round differently.
        np.testing.assert_allclose(scores, expected, atol=0.1)

    def test_plans(self):
        plan = windows(self.engine)
        dense = self.engine.logits(self.tokens[:200])
        planned = self.engine.logits(self.tokens[:200], plan=plan)
        np.testing.assert_array_equal(dense[:64], planned[:64])  # the window covers these
        self.assertFalse(np.array_equal(dense[150:], planned[150:]))
        bytes_of = self.engine.cache_bytes(200, plan=plan)
        self.assertLess(bytes_of["read"], bytes_of["dense"])
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "plan.json"
            plan.save(str(path))
            other = baton.Engine(MODEL, plan=path)
            options = dict(tokens=self.tokens[:300], max_tokens=8, ignore_end=True)
            self.assertEqual(other.generate(**options).tokens, self.engine.generate(plan=plan, **options).tokens)
            self.assertEqual(other.generate(dense=True, **options).tokens, self.engine.generate(**options).tokens)
            exact = other.generate(exact=True, **options)
            self.assertEqual(exact.tokens, self.engine.generate(**options).tokens)
            self.assertIn("exact", exact.stats)

    def test_profile_search_evaluate(self):
        seen = []
        text = (ROOT / "docs" / "design.md").read_text() + (ROOT / "docs" / "quality.md").read_text()
        with tempfile.TemporaryDirectory() as folder:
            source = pathlib.Path(folder) / "text.md"
            source.write_text(text)
            profile = self.engine.profile([source], context=512, probes=2, progress=lambda f, what: seen.append(f))
            self.assertEqual(seen, sorted(seen))
            self.assertGreater(len(seen), 3)
            plan, results = self.engine.search(profile, max_bytes=0.9, min_retrieval=0, max_evaluations=3)
            self.assertLessEqual(results["chosen"]["kv_bytes_share"], 0.9)

            class Stop(Exception):
                pass

            def stop(fraction, what):
                raise Stop

            with self.assertRaises(Stop):
                self.engine.profile([source], context=512, probes=2, progress=stop)
        judged = self.engine.evaluate((ROOT / "docs" / "tour.md").read_text(), plan, context=512, rows=32, needles=0)
        self.assertGreaterEqual(judged["kl_mean"], 0)
        self.assertLessEqual(judged["kv_bytes_share"], 0.95)

    def test_errors_say_what_was_expected(self):
        with self.assertRaisesRegex(baton.Error, "no-such-file"):
            baton.Engine("no-such-file.gguf")
        with self.assertRaisesRegex(baton.Error, "backend.*expected one of.*got gpu"):
            baton.Engine(MODEL, backend="gpu")
        with self.assertRaises(TypeError):
            self.engine.generate(PROMPT, tokens=[1])
        with self.assertRaises(TypeError):
            self.engine.score([1.5, 2.0])
        with self.assertRaises(baton.Error):
            self.engine.generate(tokens=[self.engine.info["vocab"]], max_tokens=1)
        with self.assertRaises((OverflowError, TypeError)):
            self.engine.generate(tokens=np.array([2**40]), max_tokens=1)

    def test_ctrl_c(self):
        code = ("import baton\n"
                f"engine = baton.Engine({str(MODEL)!r}, threads=1)\n"
                "print('ready', flush=True)\n"
                "try:\n"
                "    for i in range(1000): engine.generate('x', max_tokens=4000, ignore_end=True)\n"
                "except KeyboardInterrupt:\n"
                "    print('interrupted', engine.generate('x', max_tokens=2).stop)\n")
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        self.assertEqual(process.stdout.readline(), "ready\n")
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
        self.assertRegex(out, "^interrupted (length|end_of_text)")

    def test_the_program_comes_along(self):
        done = subprocess.run([sys.executable, "-m", "baton", "tokenize", str(MODEL), "--json"], input=PROMPT,
                              capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("tokens", done.stdout)


class Counted(unittest.TextTestRunner):
    def run(self, test):
        result = super().run(test)
        failed = len(result.failures) + len(result.errors)
        print(f"{result.testsRun - failed - len(result.skipped)} passed, {failed} failed, {len(result.skipped)} skipped")
        return result


if __name__ == "__main__":
    os.chdir(ROOT)
    unittest.main(testRunner=Counted)
