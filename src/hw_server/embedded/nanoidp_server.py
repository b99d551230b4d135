"""NanoIDP, run with sign-in pages that load nothing from elsewhere: its templates take Bootstrap from a CDN, for which a browser
without the internet waits. Its dashboard is left as it is."""

import re
import sys
from typing import Any

PAGES = frozenset({"/authorize", "/login", "/logout"})
FROM_CDN = re.compile(rb'<link href="https://[^>]*>|<script src="https://[^>]*></script>')
# The classes of Bootstrap that these pages use, as far as they need them.
STYLE = b"""<style>
* { box-sizing: border-box; }
body { margin: 0; font: 1rem/1.5 system-ui, sans-serif; color: #212529; }
h3, h5, p { margin: 0 0 .5rem; }
small { font-size: .875em; }
.d-block { display: block; }
.text-center { text-align: center; }
.text-muted { color: #6c757d; }
.mb-3, .mb-4 { margin-bottom: 1rem; }
.form-floating { display: flex; flex-direction: column-reverse; }
.form-control { width: 100%; padding: .6rem .75rem; font: inherit; border: 1px solid #ced4da; border-radius: .4rem; }
.btn { padding: .6rem .75rem; font: inherit; border: 0; border-radius: .4rem; cursor: pointer; text-decoration: none; }
.btn-primary { background: #0d6efd; color: #fff; }
.btn-link { background: none; color: #0d6efd; }
.btn-close { display: none; }
.w-100 { width: 100%; }
.badge { padding: .2rem .5rem; border-radius: .4rem; background: #6c757d; color: #fff; }
.alert { padding: .75rem; margin-bottom: 1rem; border-radius: .4rem; background: #f8d7da; color: #58151c; }
</style>"""


def self_contained(response: Any) -> Any:
    """What the CDN would serve, replaced by the style above."""
    from flask import request

    if request.path in PAGES and response.mimetype == "text/html" and not response.direct_passthrough:
        page = FROM_CDN.sub(b"", response.get_data())
        response.set_data(page.replace(b"<style>", STYLE + b"<style>", 1))
    return response


def main() -> None:
    from nanoidp.app import create_app

    folder, port = sys.argv[1:]
    app = create_app(folder)
    app.after_request(self_contained)
    app.run(host="127.0.0.1", port=int(port))


if __name__ == "__main__":
    main()
