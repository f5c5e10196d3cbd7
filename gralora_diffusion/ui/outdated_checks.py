"""The table of Checks says when captions or images were changed after them."""

OUTDATED_CHECKS = """<script>
{
    const CHANGES = '#put-before, #put-before-selected, #replace-all, #undo-delete, #delete-selected, ' +
        '#delete-masks, #write-captions, #make-masks, .card-actions button';
    const changed = () => document.getElementById('findings')?.classList.add('outdated');
    const FIELDS = '.card-caption, #check-size';
    document.addEventListener('input', event => event.target.closest?.(FIELDS) && changed());
    document.addEventListener('change', event => event.target.closest?.('#drop') && changed());
    document.addEventListener('drop', event => event.target.closest?.('#drop') && changed(), true);
    document.addEventListener('click', event => event.target.closest?.(CHANGES) && changed());
}
</script>"""
CHECKED = "() => { document.getElementById('findings')?.classList.remove('outdated'); return []; }"
