"""Results as lines and as the tables of the book."""

import json
from pathlib import Path


def line(result: dict) -> str:
    holds = {True: "ok    ", False: "FAILED", None: "      "}[result["holds"]]
    return f"{holds} {result['name']:28} {said(result)}  ({result.get('seconds', 0)} s)"


def said(result: dict) -> str:
    """What came of a case, in a few words."""
    if "problem" in result:
        return result["problem"][:200]
    if "refused" in result:
        return f"refused at start: {result['refused'][:160]}"
    if "what" in result:
        return result["what"]
    right = f"{result['right']} of {result['of']}"
    if result["finish"] not in (["length"],):
        return f"{right}; requests end with {', '.join(result['finish'])}"
    if result["must"] == "bytes":
        text = f"{right}, rows equal"
    elif result["must"] == "noise":
        text = f"divergence {_mean(result.get('divergence'))}, of the formats {_mean(result.get('noise'))}"
        if "margin" in result:
            text += f", zeros at least {result['margin']:.0f} times ours"
    elif result["difference"] == 0 and result["right"] == result["of"]:
        text = f"{right}, logprobs equal"
    else:
        text = f"{result['tokens_right']} of {result['of']}, logprobs to {result['difference']:.1e}"
    leaked = {tag: count for tag, count in result.get("leaked", {}).items() if count}
    return text + (f"; leaked {leaked}" if leaked else "")


def _mean(values: list | None) -> str:
    found = [value for value in values or [] if value is not None]
    return f"{sum(found) / len(found):.2e}" if found else "none"


def markdown(cases: list, folder: Path) -> str:
    """The tables, of all results that are there."""
    rows, more = [], []
    for case in cases:
        results = {}
        for way in case.ways:
            path = folder / f"{case.name}.{way}.json"
            if path.exists():
                results[way] = json.loads(path.read_text())
        if not results:
            continue
        if "failures" in case.groups:
            more += [f"| {case.says} | {way} | {said(result)} |" for way, result in results.items()]
        else:
            cell = {way: said(results[way]) if way in results else "" for way in ("tcp", "shm", "nixl")}
            rows.append(f"| {case.says} | {cell['tcp']} | {cell['shm']} | {cell['nixl']} |")
            if "zeroed" in results:
                rows.append(f"| {case.says}, cache zeroed | {said(results['zeroed'])} | | |")
    head = "| P → D | MoaiConnector, tcp | MoaiConnector, shm | NixlConnector |\n|---|---|---|---|\n"
    text = head + "\n".join(rows) + "\n"
    if more:
        text += "\n| what fails | over | what happens |\n|---|---|---|\n" + "\n".join(more) + "\n"
    return text
