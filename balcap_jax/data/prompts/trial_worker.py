"""The other process of `trials`: runs what a model folder brings, where it can be cut off.

Started by its path and not imported: it needs jinja2 and tokenizers only and is ready in a tenth of
a second. Jobs come as lines of JSON on stdin, an answer goes to stdout for each.
"""

import datetime
import json
import os
import sys

MEMORY = 4 << 30


def limit_memory() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):
        pass  # no such limit here; the time limit remains


def tokenize(path: str, text: str) -> None:
    from tokenizers import Tokenizer

    Tokenizer.from_file(path).encode(text)


def render(template: str, conversations: list, tokens: dict) -> None:
    """Renders as transformers does: the same sandbox, the same names."""
    compiled = environment().from_string(template)
    for messages in conversations:
        for prompt in (True, False):
            try:
                compiled.render(messages=messages, add_generation_prompt=prompt, **tokens)
            except MemoryError:
                raise
            except Exception:  # noqa: BLE001, S110 - whether it may raise is the caller's to say
                pass


def environment():
    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False)
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return made


def answer(job: dict) -> str:
    """What went wrong that must not happen in the other process; "" if nothing did."""
    try:
        if job["kind"] == "tokenizer":
            tokenize(job["path"], job["text"])
        else:
            render(job["template"], job["conversations"], job["tokens"])
    except MemoryError:
        return "it takes too much memory"
    except Exception:  # noqa: BLE001 - the other process will meet it too and say it better
        return ""
    except BaseException as error:  # noqa: BLE001 - a panic of Rust
        return str(error) or type(error).__name__
    return ""


def main() -> None:
    jobs, answers = sys.stdin, os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing else may stand among the answers
    sys.path[:] = json.loads(jobs.readline())
    limit_memory()
    for line in jobs:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
