"""ask.py URL [--picture FILE]

Asks the Prometheus at URL every question of the dashboard and of the alert rules, and compares the metrics that it has
with docs/metrics.md. Exits with 1 where a question has no answer. --picture draws the dashboard from the answers.
"""

import argparse
import html
import json
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

DASHBOARD = "packaging/grafana/rbd-preflight.json"
# Anything may take this long, on a machine that is slow and busy.
PATIENCE = 180
# What the node of tests/metrics/run makes fire at once, or be pending for as long as the rule waits.
FIRING = {"RbdRunningGuestDiskDead", "RbdNodeClientDead"}
PENDING = {"RbdGuestCannotStart", "RbdGuestsUnread"}


def get(path, **query):
    with urllib.request.urlopen(f"{URL}/api/v1/{path}?{urllib.parse.urlencode(query, doseq=True)}", timeout=30) as answer:
        return json.load(answer)["data"]


def wait(what, until):
    """Waits until it gives something."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            if found := until():
                return found
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            pass
        if time.monotonic() > end:
            sys.exit(f"not within {PATIENCE} s: {what}")
        time.sleep(0.5)


def questions():
    """Every panel, each with its questions, as Grafana would ask them with all nodes chosen."""
    with open(DASHBOARD) as file:
        dashboard = json.load(file)
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids), "two panels have one number"
    for panel in dashboard["panels"]:
        yield panel, [(target, target["expr"].replace("$node", ".*")) for target in panel["targets"]]


def documented():
    """The metrics of docs/metrics.md, each with its labels."""
    with open("docs/metrics.md") as file:
        rows = re.findall(r"^\| `(rbd_preflight_\w+)` \| ([^|]*)\|", file.read(), re.MULTILINE)
    return {name: set(re.findall("`([a-z]+)`", labels)) for name, labels in rows}


def scraped():
    found = {}
    for labels in get("series", **{"match[]": '{__name__=~"rbd_preflight_.*"}'}):
        own = set(labels) - {"__name__", "instance", "job"}
        found.setdefault(labels["__name__"], set()).update(own)
    return found


def compare(found, known):
    """Prometheus leaves out a label that is empty."""
    wrong = [f"{name} is not documented" for name in found.keys() - known.keys()]
    wrong += [f"{name} is documented, and was not scraped" for name in known.keys() - found.keys()]
    wrong += [f"{name} has the labels {sorted(found[name])}, documented are {sorted(known[name])}"
              for name in found.keys() & known.keys() if found[name] != known[name]]
    return wrong


def alerts():
    rules = [rule for group in get("rules")["groups"] for rule in group["rules"]]
    sick = [f"{rule['name']}: {rule.get('lastError')}" for rule in rules if rule["health"] == "err"]
    if sick:
        sys.exit("\n".join(sick))
    if len(rules) < 10 or any(rule["health"] != "ok" for rule in rules):
        return None
    states = {rule["name"]: rule["state"] for rule in rules}
    there = all(states[name] == "firing" for name in FIRING)
    there = there and all(states[name] in ("pending", "firing") for name in PENDING)
    return rules if there else None


# ---- the picture --------------------------------------------------------------------------------------------------

CELL, ROW, GAP = 46, 26, 8
COLOURS = {"refused": "#c4162a", "blocked": "#e02f44", "unknown": "#ff9830", "repairable": "#5794f2", "ready": "#56a64b"}
OTHERS = ["#b877d9", "#f2cc0c", "#8ab8ff", "#ff780a", "#96d98d", "#ca95e5", "#fade2a"]


def text(x, y, words, size=12, colour="#ccccdc", anchor="start", weight="normal"):
    return (f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" fill="{colour}" text-anchor="{anchor}" '
            f'font-weight="{weight}">{html.escape(str(words))}</text>')


def number(value):
    return f"{float(value):g}"


def of_stat(panel, x, y, w, h, answers):
    value = float(answers[0][0]["value"][1])
    colour = "#37872d"
    for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]:
        if step["value"] is None or value >= step["value"]:
            colour = {"green": "#37872d", "red": "#c4162a", "orange": "#e0752d", "blue": "#1f60c4"}[step["color"]]
    return [f'<rect x="{x}" y="{y + 22}" width="{w}" height="{h - 22}" rx="3" fill="{colour}"/>',
            text(x + w / 2, y + h / 2 + 22, number(value), 30, "#ffffff", "middle", "bold")]


def of_table(panel, x, y, w, h, answers):
    rows = [dict(sample["metric"]) for sample in answers[0]]
    if any(change["id"] == "groupingToMatrix" for change in panel["transformations"]):
        nodes = sorted({row["target"] for row in rows})
        cells = {(row["vmid"], row["target"]): sample["value"][1] for row, sample in zip(rows, answers[0])}
        rows = [{"vmid": vmid} | {node: cells.get((vmid, node), "") for node in nodes} for vmid in sorted({v for v, _ in cells})]
    hidden = {"__name__", "job", "instance", "client", "gravity", "kind"}
    names = []
    for row in rows:
        names += [name for name in row if name not in names and name not in hidden]
    order = ["node", "vmid", "severity", "code", "disk", "device", "image"]
    names.sort(key=lambda name: order.index(name) if name in order else len(order))
    room = max(1, int((h - 56) // 18))
    width = (w - 16) / max(1, len(names))
    out = [text(x + 8 + at * width, y + 40, name, 12, "#8e8e9e", weight="bold") for at, name in enumerate(names)]
    rows.sort(key=lambda row: [row.get(name, "") for name in names])
    for line, row in enumerate(rows[:room]):
        for at, name in enumerate(names):
            out.append(text(x + 8 + at * width, y + 60 + line * 18, row.get(name, "")))
    return out


def of_bars(_, x, y, w, h, answers):
    samples = sorted(answers[0], key=lambda sample: (-float(sample["value"][1]), sample["metric"]["code"]))
    room = max(1, int((h - 34) // 20))
    most = max(float(sample["value"][1]) for sample in samples)
    out = []
    for line, sample in enumerate(samples[:room]):
        top, value = y + 34 + line * 20, float(sample["value"][1])
        out.append(text(x + 8, top + 12, sample["metric"]["code"]))
        out.append(f'<rect x="{x + 190}" y="{top}" width="{(w - 240) * value / most:.0f}" height="14" fill="#5794f2"/>')
        out.append(text(x + w - 10, top + 12, number(value), anchor="end"))
    return out


def of_lines(panel, x, y, w, h, answers):
    """A moment has no course, so each series is drawn as the height that it has: stacked, as the panel stacks them."""
    series = []
    for target, samples in zip(panel["targets"], answers):
        for sample in samples:
            name = re.sub(r"{{(\w+)}}", lambda label: sample["metric"].get(label[1], ""), target.get("legendFormat") or "")
            name = name.replace(sample["metric"].get("instance", "\0"), "pve1:9100")
            series.append((name, float(sample["value"][1])))
    series = [(name, value) for name, value in sorted(series) if value > 0]
    total = sum(value for _, value in series) or 1.0
    unit = panel["fieldConfig"]["defaults"]["unit"]
    out, bottom, height = [], y + h - 10 - 18 * ((len(series) + 2) // 3), h - 50 - 18 * ((len(series) + 2) // 3)
    level = bottom
    for at, (name, value) in enumerate(series):
        colour = COLOURS.get(name) or OTHERS[at % len(OTHERS)]
        tall = height * value / total
        level -= tall
        out.append(f'<rect x="{x + 34}" y="{level:.1f}" width="{w - 44}" height="{tall:.1f}" fill="{colour}" fill-opacity="0.35" '
                   f'stroke="{colour}"/>')
        key_x, key_y = x + 12 + (at % 3) * (w - 20) / 3, bottom + 20 + (at // 3) * 18
        out.append(f'<rect x="{key_x:.0f}" y="{key_y - 9:.0f}" width="10" height="10" fill="{colour}"/>')
        shown = f"{value:.1f} s" if unit == "s" else number(value)
        out.append(text(key_x + 15, key_y, f"{name}: {shown}", 11))
    out.append(text(x + 30, y + 40, number(round(total, 1)), 11, "#8e8e9e", "end"))
    out.append(text(x + 30, bottom, "0", 11, "#8e8e9e", "end"))
    return out


def picture(answered):
    kinds = {"stat": of_stat, "table": of_table, "bargauge": of_bars, "timeseries": of_lines}
    width = 24 * CELL + GAP
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel, _ in answered) * ROW + GAP
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
           f'font-family="Inter, Helvetica, Arial, sans-serif">',
           "<desc>Drawn by tests/metrics/run --picture from what a real Prometheus has scraped.</desc>",
           f'<rect width="{width}" height="{height}" fill="#111217"/>']
    for panel, answers in answered:
        at = panel["gridPos"]
        x, y = at["x"] * CELL + GAP, at["y"] * ROW + GAP
        w, h = at["w"] * CELL - GAP, at["h"] * ROW - GAP
        out.append(f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="3" fill="#181b1f" stroke="#2c3235"/>')
        out.append(text(x + 8, y + 16, panel["title"], 12, "#ccccdc", weight="bold"))
        out += kinds[panel["type"]](panel, x, y, w, h, answers)
    return "\n".join(out + ["</svg>", ""])


parser = argparse.ArgumentParser()
parser.add_argument("url")
parser.add_argument("--picture")
options = parser.parse_args()
URL = options.url

known = documented()
assert len(known) > 10
wait("every metric that is documented", lambda: known.keys() <= scraped().keys())
# The samples of one look come together, but a look may come between two questions.
wait("the dead client's disk", lambda: get("query", query='rbd_preflight_watch_trouble{code="io-errors"} == 1')["result"])
if wrong := compare(scraped(), known):
    sys.exit("\n".join(wrong))
answered, empty = [], []
for panel, asked in questions():
    answers = []
    for _, question in asked:
        answer = get("query", query=question)["result"]
        if not answer:
            empty.append(f"{panel['title']}: no answer to {question}")
        answers.append(answer)
        # What a panel with a course asks for.
        if panel["type"] == "timeseries":
            now = time.time()
            if not get("query_range", query=question, start=now - 60, end=now, step=5)["result"]:
                empty.append(f"{panel['title']}: no course of {question}")
    answered.append((panel, answers))
if empty:
    sys.exit("\n".join(empty))
rules = wait(f"the alerts {sorted(FIRING)}, and {sorted(PENDING)} to come", alerts)
print(f"   {sum(len(asked) for _, asked in questions())} questions of {len(answered)} panels, {len(rules)} rules, {len(known)} metrics")
if options.picture:
    with open(options.picture, "w") as file:
        # The pool of the test's node has a number.
        file.write(re.sub(r"\bmetrics\d+/", "rbd/", picture(answered)))
