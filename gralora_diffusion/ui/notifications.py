"""What the browser says when a run ends: the title of its tab, and a notification where it was asked for.

Gradio has no such thing, so this is JavaScript; names of runs are only ever texts in it.
"""

NOTIFY_HEAD = """<script>
window.graloraAsked = () =>
    localStorage.getItem('gralora-notify') === 'on' && window.Notification?.permission === 'granted';
window.graloraWaits = () => Boolean(window.graloraAsked() && window.graloraRun?.active);
window.graloraFollow = (run, state, step) => {
    const before = window.graloraRun;
    const active = ['starting', 'running', 'stopping'].includes(state);
    window.graloraRun = {run, state, active};
    const name = run === '-' ? '' : run;
    const page = 'GraLoRA: train adapters for SDXL';
    document.title = active ? `${step} ${name} · GraLoRA` : name ? `${name}: ${state} · GraLoRA` : page;
    if (before?.active && (before.run !== run || !active)) {
        window.graloraNotify(before.run, before.run === run ? state : 'ended');
    }
    if (document.hidden && !window.graloraWaits()) document.getElementById('page-hidden')?.click();
};
window.graloraNotify = (run, state) => {
    if (!window.graloraAsked()) return;
    try {
        new Notification(`${run}: ${state}`, {body: 'GraLoRA', tag: `gralora-${run}`});
    } catch { }  // a phone's browser has them for service workers alone; the title says it too
};
</script>"""
FOLLOW = "(run, state, step) => { window.graloraFollow(run, state, step); }"
# by a click alone: the browser's own question is asked at no other time
ASK = """async () => {
    if (!window.Notification) return 'This browser notifies only on https and localhost';
    const wanted = !window.graloraAsked();
    const answer = wanted ? await Notification.requestPermission() : 'no longer wanted';
    localStorage.setItem('gralora-notify', answer === 'granted' ? 'on' : 'off');
    if (answer === 'denied') return 'Notifications are blocked in the browser';
    return answer === 'granted' ? 'Notifications are on' : 'Notify me';
}"""
LABEL = "() => window.graloraAsked() ? 'Notifications are on' : 'Notify me'"
