"""The colours and fonts of gradio's own parts: those of the page's stylesheet."""

from __future__ import annotations

from typing import Any

import gradio as gr


def theme() -> Any:
    """Return the page's colours and fonts: only those that are on the reader's machine."""
    sans = [
        "system-ui",
        "-apple-system",
        "Segoe UI",
        "Roboto",
        "Helvetica Neue",
        "Noto Sans",
        "DejaVu Sans",
        "sans-serif",
    ]
    base = gr.themes.Base(
        primary_hue="sky", neutral_hue="stone", font=sans, font_mono=["ui-monospace", "DejaVu Sans Mono", "monospace"]
    )
    colours = {
        "body_background_fill": "paper",
        "body_text_color": "ink",
        "body_text_color_subdued": "soft",
        "background_fill_primary": "paper",
        "background_fill_secondary": "panel",
        "border_color_primary": "rule",
        "block_background_fill": "paper",
        "block_label_text_color": "ink",
        "block_title_text_color": "ink",
        "block_info_text_color": "soft",
        "input_background_fill": "panel",
        "input_border_color": "rule",
        "checkbox_label_background_fill": "panel",
        "checkbox_label_background_fill_selected": "tint",
        "checkbox_label_text_color": "ink",
        "checkbox_label_text_color_selected": "ink",
        "checkbox_background_color_selected": "accent",
        "checkbox_border_color_selected": "accent",
        "slider_color": "bar",
        "button_primary_background_fill": "accent",
        "button_primary_text_color": "paper",
        "button_secondary_background_fill": "panel",
        "button_secondary_text_color": "ink",
    }
    values = {name: f"var(--ak-{colour})" for name, colour in colours.items()}
    dark = {f"{name}_dark": value for name, value in values.items()}
    return base.set(**values, **dark)
