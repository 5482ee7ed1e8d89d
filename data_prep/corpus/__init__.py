"""From files of documents to a uniform sample of their passages.

`files` hands out raw records, `harvest` turns them into candidates in worker processes (`documents`,
`cutting`, `quality`, `priority`), `reserve` keeps the candidates that the sample can need, and `walk`
accepts or drops them one by one (`duplicates`).
"""
