"""Runs the cases, writes what came of them, and says whether what must hold does. See `run`."""

import json
import sys
import time
import traceback


def chosen(names: list[str], cases: list) -> list:
    known = {name for case in cases for name in (case.name, *case.groups)}
    for name in names:
        if name not in known:
            raise SystemExit(f"no case or group {name!r}; known: {', '.join(sorted(known))}")
    return [case for case in cases if not names or {case.name, *case.groups} & set(names)]


def main() -> int:
    from cases import PAIRS
    from failures import FAILURES

    names = [name for name in sys.argv[1:] if not name.startswith("--")]
    cases = chosen(names, [*PAIRS, *FAILURES])
    if "--list" in sys.argv:
        for case in cases:
            print(f"{case.name:22} {', '.join(case.groups):10} {case.says}")
        return 0
    warm()
    from fleet import HOME, Baselines
    import pairs
    import table

    folder = HOME / "results"
    folder.mkdir(parents=True, exist_ok=True)
    baselines = Baselines()
    failed = []
    for case in cases:
        for way in case.ways:
            if way == "nixl" and "--without-nixl" in sys.argv:
                continue
            start = time.monotonic()
            try:
                result = pairs.run(case, way, baselines) if case in PAIRS else case.run(way, baselines)
            except Exception as error:
                traceback.print_exc()
                result = {"name": f"{case.name}/{way}", "way": way, "problem": f"{type(error).__name__}: {error}", "holds": False}
            result["case"], result["says"] = case.name, case.says
            result["seconds"] = round(time.monotonic() - start, 1)
            (folder / f"{case.name}.{way}.json").write_text(json.dumps(result, indent=1))
            print(table.line(result), flush=True)
            if result["holds"] is False:
                failed.append(result["name"])
    (folder / "table.md").write_text(table.markdown([*PAIRS, *FAILURES], folder))
    print(f"{len(failed)} failed{': ' + ', '.join(failed) if failed else ''}; {folder / 'table.md'}")
    return 1 if failed else 0


def warm() -> None:
    """Imports once what every engine needs: they are forked from this process."""
    start = time.monotonic()
    import vllm.distributed.kv_transfer.kv_connector.v1.nixl.connector  # noqa: F401
    import vllm.entrypoints.llm  # noqa: F401
    import vllm.model_executor.models.llama  # noqa: F401
    import vllm.v1.engine.core  # noqa: F401
    import vllm.v1.worker.cpu_model_runner  # noqa: F401
    import vllm.v1.worker.cpu_worker  # noqa: F401

    print(f"vLLM imported in {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
