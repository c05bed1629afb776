# ruff: noqa: E501
"""The report's page, as a template of Jinja's: Flower packs no other file than code and settings."""

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ runs | map(attribute="name") | join(" and ") }} – feddat</title>
<style>
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --page: #ffffff; --band: #f3f5f7; --mark: #0b6e4f; --edge: #00000055; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9aa4af; --line: #3a424c; --page: #12161b; --band: #1b2128; --mark: #5fd3a6; --edge: #ffffff55; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem 1rem 4rem; color: var(--ink); background: var(--page);
  font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; border-bottom: 1px solid var(--line); padding-bottom: .25rem; }
p { max-width: 46rem; }
.soft { color: var(--soft); }
.says { border-left: .25rem solid var(--soft); padding: .25rem 0 .25rem .9rem; font-size: 1.1rem; }
/* Where there is more to the side an edge is darkened: two covers of the page's colour move with what scrolls. */
.wide { overflow-x: auto; background: linear-gradient(90deg, var(--page) 40%, transparent) 0 / 2.5rem 100% local,
  linear-gradient(270deg, var(--page) 40%, transparent) 100% / 2.5rem 100% local,
  linear-gradient(90deg, var(--edge), transparent) 0 / 1rem 100%,
  linear-gradient(270deg, var(--edge), transparent) 100% / 1rem 100%; background-repeat: no-repeat; }
.wide:focus-visible, summary:focus-visible, a:focus-visible { outline: .2rem solid var(--mark); outline-offset: .15rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
caption { text-align: left; color: var(--soft); padding-bottom: .4rem; position: sticky; left: 0; max-width: calc(100vw - 2rem); }
th, td { padding: .35rem .8rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: bottom; }
thead th { white-space: pre-line; font-weight: 600; }
tbody th, th:first-child, .words td, .words th { text-align: left; font-weight: 400; }
tr.sum th, tr.sum td { font-weight: 700; background: var(--band); }
figure { margin: 1rem 0; }
figure svg { width: 100%; min-width: 34rem; max-width: 60rem; height: auto; }
figcaption { color: var(--soft); max-width: 46rem; }
code, pre { font-family: ui-monospace, monospace; font-size: .92em; background: var(--band); border-radius: .25rem; }
code { padding: .05rem .3rem; } pre { padding: .7rem .9rem; white-space: pre-wrap; }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .3rem 1.2rem; }
dt { color: var(--soft); } dd { margin: 0; }
summary { cursor: pointer; padding: .3rem 0; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .6rem; } }
</style>
</head>
<body>
{% macro scored(run) %}
{% if run.unscored %}
<p class="says">{{ run.unscored }}</p>
{% else %}
{% set header, lines = run.table %}
<div class="wide" tabindex="0" role="region" aria-label="scores of {{ run.name }}">
<table>
<caption>{{ run.measured_on }}</caption>
<thead><tr>{% for cell in header %}<th scope="col">{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for line in lines %}
<tr{% if line[0] in ("mean", "worst", "all classes") %} class="sum"{% endif %}><th scope="row">{{ line[0] }}</th>{% for cell in line[1:] %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endif %}
{% endmacro %}
<main>
{% if runs | length > 1 %}
<h1>{{ runs | map(attribute="name") | join(" and ") }}</h1>
<p class="soft">Runs side by side: each client's last score of the deployed branch, and the settings that differ.</p>
<div class="wide" tabindex="0" role="region" aria-label="scores side by side">
<table>
<caption>Last score of each client, in points</caption>
<thead><tr><th scope="col">client</th>{% for run in runs %}<th scope="col">{{ run.name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for name, scores in beside.items() %}
<tr><th scope="row">{{ name }}</th>{% for score in scores %}<td>{{ score | points }}</td>{% endfor %}</tr>
{% endfor %}
<tr class="sum"><th scope="row">mean</th>{% for run in runs %}<td>{{ run.mean | points }}</td>{% endfor %}</tr>
</tbody>
</table>
</div>
{% if note %}
<p class="says">{{ note }}</p>
{% endif %}
<h2>Settings that differ</h2>
{% if differing %}
<div class="wide" tabindex="0" role="region" aria-label="settings that differ">
<table class="words">
<thead><tr><th scope="col">setting</th>{% for run in runs %}<th scope="col">{{ run.name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for key in differing %}
<tr><th scope="row"><code>{{ key }}</code></th>{% for run in runs %}<td>{{ run.settings.get(key, "–") }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% else %}
<p>None.</p>
{% endif %}
{% endif %}
{% for run in runs %}
{% if runs | length == 1 %}
<h1>{{ run.name }}</h1>
<p class="soft">{{ run.what_ran }}</p>
{% for sentence in run.says %}
<p class="says">{{ sentence }}</p>
{% endfor %}
<h2>Scores</h2>
{{ scored(run) }}
{% else %}
<h2>{{ run.name }}</h2>
<p class="soft">{{ run.what_ran }}</p>
{% endif %}
{% if run.branches %}
<figure><div class="wide" tabindex="0" role="region" aria-label="curves of the branches">{{ run.branches }}</div>
<figcaption>Score of each branch in the rounds that were scored, one plot per client, the lowest final score first{% if run.names | length > 12 %}; the twelve lowest of {{ run.names | length }}{% endif %}. The grey line is what the question alone gives.</figcaption></figure>
{% endif %}
{% if runs | length == 1 %}
<h2>How it went</h2>
<figure><div class="wide" tabindex="0" role="region" aria-label="curves of the training">{{ run.training }}</div>
<figcaption>Losses, mean of the clients, and how far the adapters went in a round, mean and range of the clients.</figcaption></figure>
<dl>
{% for key, value in run.facts.items() %}
<dt>{{ key }}</dt><dd>{{ value }}</dd>
{% endfor %}
</dl>
{% if run.refused %}
<h2>Replies refused</h2>
<div class="wide" tabindex="0" role="region" aria-label="replies refused">
<table class="words">
<thead><tr><th scope="col">times</th><th scope="col">client</th><th scope="col">phase</th><th scope="col">reason</th></tr></thead>
<tbody>
{% for (client, phase, reason), times in run.refused.most_common() %}
<tr><td>{{ times }}</td><td>{{ client }}</td><td>{{ phase }}</td><td>{{ reason }}</td></tr>
{% endfor %}
</tbody>
</table>
</div>
{% endif %}
<h2>To repeat it</h2>
<p>With the same source{% if run.settings.get("source-hash") %} (<code>{{ run.settings["source-hash"][:16] }}</code>){% endif %}{% if run.settings.get("flwr") %}, Flower {{ run.settings["flwr"] }} and PyTorch {{ run.settings["torch"] }}{% endif %}:</p>
<pre>{{ run.command }}</pre>
<details><summary>All settings</summary>
<div class="wide" tabindex="0" role="region" aria-label="all settings">
<table class="words">
<thead><tr><th scope="col">setting</th><th scope="col">value</th></tr></thead>
<tbody>
{% for key, value in run.settings.items() if key != "run-token" %}
<tr><th scope="row"><code>{{ key }}</code></th><td>{{ value }}</td></tr>
{% endfor %}
</tbody>
</table>
</div>
</details>
<details><summary>Words</summary>
<dl>
{% for word, meaning in words.items() %}
<dt>{{ word }}</dt><dd>{{ meaning }}</dd>
{% endfor %}
</dl>
</details>
{% endif %}
{% endfor %}
</main>
</body>
</html>
"""
