"""Many requests, one compiled loop.

Reading order: `adapters` (what of many tasks lies over the base), `grammar` (which tokens may come
next), `drafts` and `ticket` (what is asked for, what has become of it), `sizes` (rows and draft
nodes by load), `extras` and `limits` (what requests may ask for), `prefixes` and `reading`
(prompts, and what is known of them), `passes` and `slots` (the state of the loop and the programs
that change it), `constraints` (masks by slot), `engine` (who gets a slot, and when); no web in any
of them. Then `answers` (text from tokens, while they come), `structure`, `bodies`, `service` and
`app` (what is asked for over HTTP and what is answered), `server` (threads and signals). The latter
need the extra "serve", as grammars do.
"""
