#!/usr/bin/env python3
"""Renders templates/*.jinja over conversations.json with jinja2, set up as transformers' apply_chat_template does, and writes
expected.json: {template: {conversation: text, or null where jinja2 or the template refuses}}. Needs jinja2 (3.1).

The templates are written for this test, in the manner of the model families they are named after.
usage: tests/golden/chat/make.py [--check]"""
import datetime
import json
import pathlib
import sys

import jinja2
import jinja2.ext
import jinja2.sandbox

HERE = pathlib.Path(__file__).resolve().parent
NOW = datetime.datetime(2025, 7, 1, tzinfo=datetime.timezone.utc)
TOKENS = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")


class Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}: its body."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def refuse(message):
    raise jinja2.exceptions.TemplateError(message)


def environment():
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                       extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = refuse
    env.globals["strftime_now"] = lambda form: NOW.strftime(form)
    return env


def render(template, talk):
    variables = dict(messages=talk["turns"], tools=talk.get("tools"), documents=None, add_generation_prompt=True,
                     **TOKENS, **talk.get("variables", {}))
    try:
        return template.render(**variables)
    except (jinja2.exceptions.TemplateError, TypeError, KeyError, IndexError):
        return None


def main():
    env = environment()
    talks = json.loads((HERE / "conversations.json").read_text())
    expected = {}
    for path in sorted((HERE / "templates").glob("*.jinja")):
        template = env.from_string(path.read_text())
        expected[path.stem] = {talk["name"]: render(template, talk) for talk in talks}
    text = json.dumps(expected, ensure_ascii=False, indent=1) + "\n"
    target = HERE / "expected.json"
    if sys.argv[1:] == ["--check"]:
        sys.exit(0 if target.read_text() == text else "expected.json is not what jinja2 renders")
    target.write_text(text)
    count = sum(len(t) for t in expected.values())
    refused = sum(r is None for t in expected.values() for r in t.values())
    print(f"{len(expected)} templates, {count} renders, {refused} refused")


if __name__ == "__main__":
    main()
