"""The log's newest line stays in sight, unless somebody has scrolled up to read; Gradio's own does not."""

FOLLOW_LOG = "() => { requestAnimationFrame(() => requestAnimationFrame(window.graloraFollowLog)); }"
LOG_HEAD = """<script>
window.graloraFollowLog = () => {
    const log = document.querySelector('#log textarea');
    if (log && log.dataset.read !== 'yes') log.scrollTop = log.scrollHeight;
};
for (const kind of ['wheel', 'touchmove', 'keydown', 'pointerup']) {
    document.addEventListener(kind, event => {
        const log = event.target.closest?.('#log textarea');
        if (!log) return;
        setTimeout(() => {  // when it has been scrolled
            log.dataset.read = log.scrollTop + log.clientHeight < log.scrollHeight - 30 ? 'yes' : 'no';
        }, 150);
    }, {capture: true, passive: true});
}
</script>"""
