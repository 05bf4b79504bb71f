"""Texts and style of the page."""

NOTE = (
    "A distance is a hint and no proof of identity. Use this gallery only where you may: with a legal basis, for a "
    "stated purpose, and with a time after which rows are erased. Every search is in the audit trail."
)
ABOUT = """
**What it is for**: to find the crops of one person among your own cameras, where you are allowed to.

**What it must not be used for**: to identify strangers, to watch people because of who they are, to decide about
anybody without a human. Images from which people can be recognised are biometric data. In most countries they need a
legal basis (mostly consent), a purpose, a limit in time, and erasure on request.

**How sure it is**: the threshold was chosen on validation people of the model's training, or on labelled people with
`calibrate`. On other cameras it may be wrong more often: check it there first. Grey images are beyond it.

**Erasure**: deleted rows are gone from all files of the gallery; the traces are counted. Copies elsewhere are yours.
"""
NEW_NAME = "made up if it is empty"
# Captions below the pictures, whole pictures, room for the label above them, results without a cut line, and tables of
# the card that scroll. Where a click marks a picture, the frame of the last click would look like a mark.
CSS = """
.gradio-container {max-width: min(1100px, 100vw) !important; margin: 0 auto !important}
.crops {min-height: 0 !important}
.crops .empty {min-height: 96px !important; height: 96px !important}
.crops .grid-wrap {padding-top: 34px; max-height: none !important; min-height: 0 !important; height: auto !important}
.crops .thumbnail-lg, .crops .gallery-item {aspect-ratio: auto !important; height: auto !important}
.crops:not(.large) .grid-container {grid-template-columns: repeat(auto-fill, minmax(112px, 1fr)) !important}
.crops .thumbnail-lg img {height: 190px !important; object-fit: contain}
.crops .caption-label {position: static !important; max-width: 100% !important; border: 0; white-space: pre-line;
  opacity: 1 !important}
.large .thumbnail-lg img {height: 300px !important}
.marks .thumbnail-lg {--ring-color: transparent !important; border-color: var(--border-color-primary) !important}
.answer textarea {field-sizing: content; height: auto !important; min-height: 2.4em}
.card {overflow-wrap: anywhere}
.card table {display: block; overflow-x: auto; border: 0 !important; padding: 0}
.card th, .card td {overflow-wrap: normal !important; word-break: normal !important}
.file-preview .download {min-width: 5.5rem !important}
"""
