# ruff: noqa: E501
"""The page of a client's examples, as a template of Jinja's: Flower packs no other file than code and settings."""

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ client }} in {{ run }} – feddat</title>
<style>
:root { color-scheme: light dark; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem 1rem 4rem; font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; }
ul { list-style: none; padding: 0; display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }
li { border: 1px solid GrayText; border-radius: .4rem; padding: .8rem; }
img { max-width: 100%; display: block; image-rendering: auto; }
h2 { font-size: 1rem; margin: .6rem 0 .3rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .8rem; margin: 0; }
dd { margin: 0; }
.mark { font-weight: 700; }
</style>
</head>
<body>
<main>
<h1>{{ client }} in {{ run }}</h1>
<p>{{ right }} of {{ shown | length }} examples shown are answered right by the branch that is deployed; those that are not come first.
{{ meaning }} This page has the client's own data: it stays where it is.</p>
<ul>
{% for one in shown %}
<li>
{% for picture in one.pictures %}
<img src="{{ picture }}" alt="a picture that the question is about">
{% endfor %}
<h2>{{ one.question }}</h2>
<p class="mark">{{ "right" if one.is_right else "wrong" }}</p>
<dl>
<dt>right answer</dt><dd>{% for answer, score in one.right.items() %}{{ answer }}{% if score < 1 %} ({{ "%.1f" | format(score) }}){% endif %}{{ ", " if not loop.last }}{% endfor %}</dd>
{% for branch, answers in one.said.items() %}
<dt>{{ branch }}</dt><dd>{% for answer, probability in answers %}{{ answer }}{% if probability == probability %} ({{ "%.0f" | format(100 * probability) }}%){% endif %}{{ ", " if not loop.last }}{% endfor %}</dd>
{% endfor %}
</dl>
</li>
{% endfor %}
</ul>
</main>
</body>
</html>
"""
