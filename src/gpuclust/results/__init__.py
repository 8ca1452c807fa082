"""What a person sees of a run: the reader, cards, figures, the summary and the report.

    run       `open_run` and `cluster_features`
    inputs    activations in hand; parameters: settings by name; feature_clusters: what comes of them
    cards     a cluster or a feature; noise: why it is noise; comparison: of runs;
              replicated: in another SAE
    figures   Plotly; static_map: the map as a picture; explorer: as a widget; palette: colours; html_page: bare pages
    summary   what a command prints at its end; report: the self-contained HTML file

May import: everything below: the vocabulary, `hardware`, `storage`, `compute`, `extraction` and `tables`.
"""
